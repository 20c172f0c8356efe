"""A Machine without a GPU: CPU tensors stand for device memory, and everything is done when it is launched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gpu_workers.cuda.machine import Chip


class SyncEvent:
    """A point that is reached as soon as it is recorded."""

    def record(self, stream: Any) -> None:
        pass

    def wait(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class KeptWork:
    """A graph that does its work again by doing it again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.replayed = work, 0

    def replay(self) -> None:
        self.replayed += 1
        self.work()


class SyncMachine:
    """See gpu_workers/cuda/machine.py. graphs: all that were captured. free_bytes, step_bytes: what it says of its memory."""

    def __init__(self, free_bytes: int = 1 << 30, step_bytes: int = 1 << 20) -> None:
        self.device = torch.device("cpu")
        # So small that a few hundred tokens are split over several blocks.
        self.chip = Chip("an emulated GPU", 4, 100 << 10, 1 << 30, ())
        self.compute, self.copies = "compute", "copies"
        self.graphs: list[KeptWork] = []
        self.free_bytes, self.step_bytes = free_bytes, step_bytes
        self.measured = 0
        self.pinned_ranges: list[tuple[int, int]] = []

    def on(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def event(self) -> SyncEvent:
        return SyncEvent()

    def capture(self, work: Callable[[], None]) -> KeptWork:
        self.graphs.append(KeptWork(work))
        return self.graphs[-1]

    def pinned(self, size: int) -> torch.Tensor:
        return torch.full((size,), 0x5A, dtype=torch.uint8)  # as good as uninitialized

    def pin(self, address: int, size: int) -> bool:
        self.pinned_ranges.append((address, size))
        return True

    def used_by(self, work: Callable[[], None]) -> tuple[int, int]:
        self.measured += 1
        work()
        return self.step_bytes, 0

    def free(self) -> int:
        return self.free_bytes
