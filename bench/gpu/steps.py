"""Decode steps of the CUDA device alone, without scheduler and processes: their time, what the GPU does in it, and when it does nothing."""

from __future__ import annotations

import importlib.util
import random
import statistics
import tempfile
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.gpu.engine import DECODE, FIRST_ORDINARY_TOKEN, write_model
from bench.gpu.limits import LLAMA_8B, TINY, Machine, Model, decode_seconds
from bench.gpu.machine import OF_QUIRE
from bench.gpu.part import Part, run

if TYPE_CHECKING:
    from gpu_workers.device.cuda import CUDADevice
    from ipc.config import Config
    from tests.gpu_workers.player import Player, Row

IN_FLIGHT = 2  # as in the worker: a step is given while the one before it computes
ROWS_AT_ONCE = 8  # of the first steps, whose block tables a plan has to carry
PROFILED = 8
KERNELS_SHOWN = 14

Interval = tuple[float, float, str]  # microseconds, and the kernel's name


def main(part: Part) -> None:
    missing = [name for name in OF_QUIRE if importlib.util.find_spec(name) is None]
    if missing:
        part.skip("steps", f"missing here: {', '.join(missing)}")
        return
    if part.dry:
        from tests.cuda_on_cpu.emulator import emulated

        with emulated():
            _measure(part, TINY, ((1, 16, 2), (2, 32, 3)))
    else:
        _measure(part, LLAMA_8B, DECODE)


def _measure(part: Part, model: Model, sizes: Iterable[tuple[int, int, int]]) -> None:
    from tests.gpu_workers.player import Player

    most = max(requests for requests, _, _ in sizes)
    blocks = 1 + max(requests * (-(-(context + 2 * tokens + 32) // 16)) for requests, context, tokens in sizes)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        began = time.perf_counter()
        player = Player(
            folder, opened=lambda config: _device(part, config), num_blocks=blocks, max_num_seqs=sum(requests for requests, _, _ in sizes),
            max_num_batched_tokens=max(512, most), max_model_len=4096, load_format="dummy", dtype="bfloat16",
        )  # fmt: skip
    for layer in (*player.runner.cache.k, *player.runner.cache.v):
        layer.normal_()  # attention over zeros would be an easier task
    part.record("device", seconds=time.perf_counter() - began, blocks=blocks)
    first_row = 0
    for requests, context, tokens in sizes:
        rows = _started(player, model, first_row, requests, context)
        first_row += requests
        _decode(part, player, model, rows, context, tokens)
        for row in rows:
            player.free(row)
    player.device.close()


def _device(part: Part, config: Config) -> CUDADevice:
    from gpu_workers.device.cuda import CUDADevice

    if not part.dry:
        return CUDADevice(0, config)
    from tests.cuda_on_cpu.sync_machine import SyncMachine

    return CUDADevice(0, config, SyncMachine())


def _started(player: Player, model: Model, first: int, requests: int, context: int) -> list[Row]:
    """Rows with so many tokens in the cache, which nobody computed, and one token that the device knows."""
    numbers, rows = random.Random(first), []
    for row in range(first, first + requests):
        rows.append(player.add(row, [numbers.randrange(FIRST_ORDINARY_TOKEN, model.vocab) for _ in range(context)]))
        rows[-1].computed = context - 1
    for start in range(0, requests, ROWS_AT_ONCE):
        player.step([(row, 1) for row in rows[start : start + ROWS_AT_ONCE]])
    return rows


def _decode(part: Part, player: Player, model: Model, rows: list[Row], context: int, tokens: int) -> None:
    _steps(player, rows, 4 if part.dry else 16)  # the second of a size records its graph
    began = time.perf_counter()
    host = _steps(player, rows, tokens)
    seconds = (time.perf_counter() - began) / tokens
    with waits() as waited:
        _steps(player, rows, 2)
    figures: dict[str, float] = {"step_ms": 1e3 * seconds, "tok_s": len(rows) / seconds, "host_us": 1e6 * host, "host_waits": len(waited)}
    name = f"steps {len(rows)} x {context}"
    if waited:
        part.fault(f"{name}: the host waits for the device: {waited[0]}")
    if part.ceilings and not part.dry:
        figures["of_limit_%"] = 100 * decode_seconds(Machine(**part.ceilings), len(rows), context + tokens // 2, model) / seconds
    part.record(name, **figures)
    profiled = 2 if part.dry else PROFILED
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU if part.dry else torch.profiler.ProfilerActivity.CUDA]
    ) as seen:
        _steps(player, rows, profiled)
        if not part.dry:
            torch.cuda.synchronize()
    wanted = torch.autograd.DeviceType.CPU if part.dry else torch.autograd.DeviceType.CUDA
    intervals = [(event.time_range.start, event.time_range.end, event.name) for event in seen.events() if event.device_type == wanted]
    if not intervals:
        part.skip(f"{name}, profiled", "the profiler saw no kernels")
        return
    busy, gaps = busy_and_gaps(intervals)
    # Copies of the next plan overlap with a step, so the largest gaps are those between steps.
    between = statistics.median(sorted(gaps)[-(profiled - 1) :]) if len(gaps) >= profiled else 0.0
    part.record(f"{name}, profiled", busy_ms=busy / profiled / 1e3, idle_us=sum(gaps) / profiled, gap_between_steps_us=between,
                launches=len(intervals) / profiled)  # fmt: skip
    for kernel, (count, spent) in list(by_kernel(intervals).items())[:KERNELS_SHOWN]:
        part.record(f"{name}: {kernel[:48]}", us_per_step=spent / profiled, per_step=count / profiled, share=spent / busy)


@contextmanager
def waits() -> Iterator[list[str]]:
    """What torch does within the context that makes the host wait for the device, in its own words; there when the context has ended."""
    found: list[str] = []
    if not torch.cuda.is_available():
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing CUDA operation" in str(each.message)]


def _steps(player: Player, rows: list[Row], count: int) -> float:
    """Decode so many tokens of each row, a step ahead of the device; the host's seconds per step."""
    waiting, host = deque(), 0.0
    for _ in range(count):
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().wait(60)
        began = time.perf_counter()
        waiting.append(player.give([(row, 1) for row in rows]))
        host += time.perf_counter() - began
        for row in rows:  # which token it was, only the device knows
            row.computed += 1
            row.tokens.append(0)
    for done in waiting:
        done.wait(60)
    return host / count


def busy_and_gaps(intervals: Iterable[Interval]) -> tuple[float, list[float]]:
    """Microseconds in which anything ran, and the pauses between, in order."""
    busy, gaps, end = 0.0, [], None
    for start, stop, _ in sorted(intervals):
        if end is not None and start > end:
            gaps.append(start - end)
        busy += max(0.0, stop - (start if end is None else max(start, end)))
        end = stop if end is None else max(end, stop)
    return busy, gaps


def by_kernel(intervals: Iterable[Interval]) -> dict[str, tuple[int, float]]:
    """Launches and microseconds of each kernel, the longest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for start, stop, name in intervals:
        found[name].append(stop - start)
    return {name: (len(each), sum(each)) for name, each in sorted(found.items(), key=lambda item: -sum(item[1]))}


if __name__ == "__main__":
    run(main)
