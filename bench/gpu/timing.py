"""How long something takes on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU


class Timer:
    """Median device time of a call. Between calls the L2 cache is overwritten, so inputs come from memory as they do in a real step, and
    the host is far enough ahead that its launch cost does not show."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self._flush = torch.empty(FLUSH_BYTES if self.cuda else 1, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], Any], repeats: int = 20, cold: bool = True) -> float:
        """cold: overwrite the cache before each call."""
        if not self.cuda:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        for _ in range(3):
            call()
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            if cold:
                self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) * 1e-3


def host_seconds(call: Callable[[], Any], count: int, synchronize: bool) -> float:
    """Host time per call over `count` calls in a row, the device's work not waited for."""
    call()
    if synchronize:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    spent = time.perf_counter() - began
    if synchronize:
        torch.cuda.synchronize()
    return spent / count
