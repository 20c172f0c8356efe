"""What the CUDA runner asks of the machine: two streams, events, graphs, page-locked memory. Tests have one without a GPU."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kernels_cuda import launch

log = logging.getLogger(__name__)

Stream = Any


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Stream) -> None:
        """The point is after all that the stream has been given so far."""
        ...

    def wait(self, stream: Stream) -> None:
        """What the stream is given from now on begins after the point. An event that was never recorded holds up nothing."""
        ...

    def synchronize(self) -> None:
        """Block this thread, without using its core, until the point is reached. Raises what went wrong on the device."""
        ...


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Give the work to the current stream again, with the same addresses."""
        ...


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU's size. multiprocessors, and bytes of shared memory of each; memory: bytes in all; architectures: whose cubins it runs."""

    name: str
    multiprocessors: int
    shared_memory: int
    memory: int
    architectures: tuple[str, ...]


class Machine(Protocol):
    """device: where tensors live. compute: the stream of all work, and torch's current one; copies: a second one, for what comes from the
    host meanwhile. Used by one thread; only Event.synchronize may be called from another."""

    device: torch.device
    chip: Chip
    compute: Stream
    copies: Stream

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """Torch's operations and our kernels go to this stream within the context."""
        ...

    def event(self) -> Event: ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` launches on the compute stream, without running it. It must have run before, in the same shapes."""
        ...

    def pinned(self, size: int) -> torch.Tensor:
        """uint8[size] of page-locked host memory, which the device copies from and to while the host goes on."""
        ...

    def pin(self, address: int, size: int) -> bool:
        """Page-lock memory that is there already; whether that worked (copies are then no less right, only slower)."""
        ...

    def used_by(self, work: Callable[[], None]) -> tuple[int, int]:
        """How many bytes more than before were in use at most while `work` ran: (by tensors, by libraries that were loaded for it)."""
        ...

    def free(self) -> int:
        """Bytes of device memory that nobody has."""
        ...


class CUDAMachine:
    """Machine over torch.cuda; our kernels are launched through CuPy on torch's streams."""

    def __init__(self, index: int) -> None:
        """Raises KernelError when there are no kernels for this GPU."""
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        self.chip = Chip(
            properties.name,
            properties.multi_processor_count,
            properties.shared_memory_per_multiprocessor,
            properties.total_memory,
            launch.architectures_for(properties.major, properties.minor),
        )
        # Not the default stream: that one cannot be captured, and it waits for the others.
        self.compute, self.copies = torch.cuda.Stream(), torch.cuda.Stream()
        torch.cuda.set_stream(self.compute)
        self._pool: Any = None

    @contextmanager
    def on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        with torch.cuda.stream(stream), launch.on_stream(stream.cuda_stream):
            yield

    def event(self) -> Event:
        return _CUDAEvent()

    def capture(self, work: Callable[[], None]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()  # one for all graphs: only one of them runs at a time
        with self.on(self.compute):
            # thread_local: the thread that waits for events of earlier steps may go on doing so.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def pin(self, address: int, size: int) -> bool:
        error = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if error:
            log.warning("the step arena could not be page-locked (CUDA error %d); steps are copied more slowly", error)
            return False
        return True

    def used_by(self, work: Callable[[], None]) -> tuple[int, int]:
        free = self.free()
        torch.cuda.reset_peak_memory_stats()
        tensors = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        step = torch.cuda.max_memory_allocated() - tensors
        return step, max(0, free - self.free())

    def free(self) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what torch keeps for tensors to come is free, too
        return torch.cuda.mem_get_info()[0]


class _CUDAEvent:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(blocking=True)

    def record(self, stream: torch.cuda.Stream) -> None:
        self._event.record(stream)

    def wait(self, stream: torch.cuda.Stream) -> None:
        self._event.wait(stream)

    def synchronize(self) -> None:
        self._event.synchronize()


def host_bytes(address: int, size: int) -> torch.Tensor:
    """uint8[size] over host memory at `address`, which its owner keeps alive."""
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
