"""What `LLM` answers, by dtype and quantization: written on one machine, compared on another of another architecture.

`python -m bench.arm.same_tokens MODEL OUT.json` answers greedily, first with torch's operators and then with compiled kernels.
`python -m bench.arm.same_tokens --compare A.json B.json` says how many answers are the same and how far the log-probabilities are apart.
MODEL is a directory that both machines read: what torch draws from a seed differs from one architecture to another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quire import LLM, SamplingParams

SETTINGS = [(dtype, quantization) for dtype in ("float32", "bfloat16") for quantization in ("none", "int8", "int4")]
PROMPTS = [list(range(300, 300 + length)) for length in (1, 7, 60, 300)]


def answers(llm: LLM) -> list[dict[str, Any]]:
    """Tokens and their log-probabilities, by prompt."""
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0), use_tqdm=False)
    found = []
    for output in outputs:
        one = output.outputs[0]
        assert one.logprobs is not None
        ids = list(one.token_ids)
        found.append({"tokens": ids, "logprobs": [round(place[token].logprob, 5) for token, place in zip(ids, one.logprobs)]})
    return found


def run(model: str, out: Path, patience: float) -> None:
    """All settings that `out` does not have yet, each in an engine of its own."""
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"machine": platform.machine()}
    for dtype, quantization in SETTINGS:
        if f"{dtype} {quantization}" in results:
            continue
        with tempfile.TemporaryFile("w+") as log:
            # The worker's log says when kernels are ready.
            stderr = os.dup(2)
            os.dup2(log.fileno(), 2)
            try:
                with LLM(model, dtype=dtype, quantization=quantization, max_num_seqs=8, log_level="info") as llm:
                    before = answers(llm)
                    kernels = _wait_for_kernels(log.fileno(), patience)
                    after = answers(llm)
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
        results[f"{dtype} {quantization}"] = {"kernels": kernels, "torch": before, "compiled": after}
        out.write_text(json.dumps(results) + "\n")
        print(dtype, quantization, "kernels:", kernels, flush=True)


def _wait_for_kernels(log: int, patience: float) -> str:
    """What the worker says of its kernels last, when nothing more is being compiled. Raises TimeoutError."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        said = [line for line in os.pread(log, 2**24, 0).decode().splitlines() if "CPU kernels in use" in line]
        if said and "being compiled" not in said[-1]:
            return said[-1].partition("in use: ")[2]
        time.sleep(0.2)
    raise TimeoutError(f"kernels were still being compiled after {patience:.0f} s")


def _apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """How many answers have the same tokens, and how far log-probabilities are apart for as long as they have."""
    apart: list[float] = []
    for a, b in zip(one, other):
        alike = [x == y for x, y in zip(a["tokens"], b["tokens"])]
        count = alike.index(False) if False in alike else len(alike)
        apart += [abs(x - y) for x, y in zip(a["logprobs"][:count], b["logprobs"][:count])]
    same = sum(a["tokens"] == b["tokens"] for a, b in zip(one, other))
    return f"{same} of {len(one)} answers, {len(apart):2} tokens, {sum(apart) / max(1, len(apart)):.5f} apart"


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A line for each setting and way: the two machines beside one another, and for bfloat16 each beside its own float32."""
    machines = one["machine"], other["machine"]
    for dtype, quantization in SETTINGS:
        setting = f"{dtype} {quantization}"
        if setting not in one or setting not in other:
            continue
        for way in ("torch", "compiled"):
            print(f"{setting:<13} {way:<8} {' and '.join(machines)}: {_apart(one[setting][way], other[setting][way])}")
            if dtype == "bfloat16":
                for results in (one, other):
                    exact = results[f"float32 {quantization}"][way]
                    print(f"{'':<22} {results['machine']} and its float32: {_apart(exact, results[setting][way])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs=2)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--patience", type=float, default=1800, help="seconds in which kernels must be compiled (default %(default)s)")
    arguments = parser.parse_args()
    first, second = arguments.paths
    if arguments.compare:
        compare(json.loads(Path(first).read_text()), json.loads(Path(second).read_text()))
    else:
        run(first, Path(second), arguments.patience)


if __name__ == "__main__":
    sys.exit(main())
