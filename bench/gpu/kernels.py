"""Kernels compiled or found, checked against float64 on this device and against what the emulator gave, then timed against their floors.

The cases are in *_cases.py."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from bench.gpu import emulated
from bench.gpu.case import Builders, Case, Inputs, poison
from bench.gpu.part import Part
from bench.gpu.timing import Timer
from kernels_cuda import launch
from kernels_cuda.build import cache, nvrtc
from kernels_cuda.catalogue import SOURCES
from kernels_cuda.kernel import ARCHITECTURES, ARCHITECTURES_90A


class Cases(Protocol):
    """A module of cases."""

    def checks(self, make: Inputs, few: bool) -> Builders:
        """For every shipped variant, small."""
        ...

    def timed(self, make: Inputs, few: bool) -> Builders:
        """Of the sizes that matter."""
        ...


def check_and_time(part: Part, cases: Cases) -> None:
    """A process of its own for each module: an illegal access ends a CUDA context and all that would follow in it."""
    with on_device(part):
        make = Inputs(part.device)
        if not part.only:
            _check(part, cases.checks(make, part.dry))
        _time(part, Timer(part.device), cases.timed(make, part.dry))


@contextmanager
def on_device(part: Part) -> Iterator[None]:
    """Within it launchers run on a stream of the GPU, for which all cubins are made first, or in the emulator."""
    if part.dry:
        from tests.cuda_on_cpu import emulator

        with emulator.emulated():
            yield
        return
    build(part)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), launch.on_stream(stream.cuda_stream):
        yield


def build(part: Part) -> None:
    """Compile what was not shipped for this GPU, on all cores at once."""
    backend = launch.backend()
    assert isinstance(backend, launch.CupyBackend)
    architecture = next(each for each in backend.architectures if each in ARCHITECTURES)
    wanted = [architecture, *(each for each in backend.architectures if each in ARCHITECTURES_90A)]
    if not nvrtc.available():
        part.skip("build", f"no compiler; only shipped cubins can be loaded. {nvrtc.HOW_TO_INSTALL}")
        return
    for each in wanted:
        began = time.perf_counter()
        sources = [Path(source.file).stem for source in SOURCES if each in source.architectures]
        command = [sys.executable, "-m", "kernels_cuda.build", "--check", "--only", *sources, "--arch", each]
        done = subprocess.run([*command, "--out", str(cache.user_cache())], capture_output=True, text=True)
        name = "build" if each == architecture else f"build for {each}"
        part.record(name, architecture=each, seconds=time.perf_counter() - began, said=done.stdout.strip().splitlines()[-1:])
        if done.returncode:
            part.fault(f"kernels_cuda.build: {done.stderr.strip()[-2000:]}")


def _check(part: Part, builders: Builders) -> None:
    """One line for all that is right, one for each that is wrong."""
    checked, worst, began = 0, 0.0, time.perf_counter()
    for builder in builders:
        error = _error_of(part, builder)
        if error is not None:
            checked, worst = checked + 1, max(worst, error)
    part.record("checked", cases=checked, worst_of_tolerance=worst, seconds=time.perf_counter() - began)


def _time(part: Part, timer: Timer, builders: Builders) -> None:
    for builder in builders:
        if part.only in builder.args[1]:
            _error_of(part, builder, timer)
            gc.collect()
            if not part.dry:
                torch.cuda.empty_cache()


def _error_of(part: Part, builder: partial[Case], timer: Timer | None = None) -> float | None:
    """The case's error over its tolerance, or None when it raised; with a timer, its time is recorded, too.

    Ends the part when the CUDA context did not survive.
    """
    name = builder.args[1]
    try:
        case = builder()
        for output in case.outputs:
            poison(output)
        case.run()
        if not part.dry:
            torch.cuda.synchronize()
        error = case.error()
        if not error <= case.tolerance:
            part.fault(f"{name}: error {error:.3g}, at most {case.tolerance:g} is right")
        if timer is None and not part.dry:
            _compare(part, case)
        if timer:
            part.record(name, **against_floor(case.moved, case.flops, timer.seconds(case.run), part.ceilings), error=error)
    except Exception as failure:
        part.fault(f"{name}: {type(failure).__name__}: {failure}"[:600])
        if not part.dry:
            torch.cuda.synchronize()  # raises again after an illegal access
        return None
    return error / case.tolerance if case.tolerance else error


def _compare(part: Part, case: Case) -> None:
    """With what the emulator gave: where it differs, one of the two does not do what the other does."""
    saved = emulated.saved().get(case.name)
    if saved is None:
        part.fault(f"{case.name}: not among the emulator's saved outputs; run python -m bench.gpu.emulated")
    elif not (apart := emulated.difference(case, saved)) <= 1:
        part.fault(f"{case.name}: differs from the emulator's output, by {apart:.3g} times what rounding explains")


def against_floor(moved: int, flops: int, seconds: float, ceilings: dict[str, float]) -> dict[str, object]:
    """Microseconds, rates, and the floor's share of the time: 100 % is as fast as this machine can."""
    figures: dict[str, object] = {"us": seconds * 1e6, "gb_s": moved / seconds / 1e9}
    if flops:
        figures["tflop_s"] = flops / seconds / 1e12
    if ceilings:
        by_bytes, by_flops = moved / ceilings["bytes_per_s"], flops / ceilings["flop_per_s"]
        figures |= {"of_limit_%": 100 * max(by_bytes, by_flops) / seconds, "limit": "bytes" if by_bytes >= by_flops else "flops"}
    return figures
