"""What the emulator of tests/cuda_on_cpu gives for every checked case, saved in emulated.json: a GPU must give the same but for rounding.

python -m bench.gpu.emulated [NAME ...] computes it anew, all of it (some minutes) or the cases whose names contain one of these.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from bench.gpu.case import Case, Inputs

SAVED = Path(__file__).with_name("emulated.json")
PLACES = 24  # numbers kept of each output, at places that the case's name decides
ROUNDINGS = 3  # how many times a kernel's own tolerance two right results may differ at those places

Excerpt = list[list[float]]


def excerpt(case: Case) -> Excerpt:
    """Some numbers of each output that does not depend on the machine; of integers their sum besides."""
    kept = []
    for output in case.outputs[: case.comparable]:
        numbers = np.random.default_rng(zlib.crc32(case.name.encode()))
        flat = output.flatten()
        places = torch.from_numpy(np.sort(numbers.integers(0, len(flat), PLACES))).to(flat.device)
        values = [float(f"{value:.7g}") if flat.is_floating_point() else value for value in flat[places].tolist()]
        kept.append(values if flat.is_floating_point() else [*values, int(flat.long().sum())])
    return kept


def difference(case: Case, saved: Excerpt) -> float:
    """How far the case's outputs are from the saved ones, as a share of what is allowed: above 1 they are others."""
    worst = 0.0
    for output, mine, other in zip(case.outputs[: case.comparable], excerpt(case), saved, strict=True):
        a, b = np.array(mine), np.array(other)
        if output.is_floating_point():
            apart = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
            worst = max(worst, apart / (ROUNDINGS * case.tolerance)) if np.isfinite(apart) else float("inf")
        elif case.tolerance < 1e-3:  # integers that must be equal
            worst = max(worst, float((a != b).sum()))
        else:  # tokens, of which a share may be a neighbour: the sum says nothing of them
            worst = max(worst, float((a != b)[:-1].mean()) / (ROUNDINGS * case.tolerance))
    return worst


@cache
def saved() -> dict[str, Excerpt]:
    """By the cases' names."""
    return dict(json.loads(SAVED.read_text()))


def cases() -> Iterator[partial[Case]]:
    """All that a GPU checks, with the wgmma kernels."""
    from bench.gpu import attention_cases, small_cases

    make = Inputs("cpu")
    yield from attention_cases.checks(make, few=False)
    yield from small_cases.checks(make, few=False)


def main(names: list[str]) -> None:
    from tests.cuda_on_cpu.emulator import emulated

    kept: dict[str, Excerpt] = saved() if names and SAVED.exists() else {}
    wrong = []
    with emulated():
        for builder in cases():
            name = builder.args[1]
            if names and not any(part in name for part in names):
                continue
            case = builder()
            case.run()
            kept[name], error = excerpt(case), case.error()
            if not error <= case.tolerance:
                wrong.append(f"{name}: error {error:.3g} in the emulator, at most {case.tolerance:g} is right")
            print(name, flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept[name], separators=(',', ':'))}" for name in sorted(kept))
    SAVED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
