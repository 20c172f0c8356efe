"""The one seam between launchers and machines: launch(kernel, grid, block, shared, *args).

Arguments are what the kernel's signature says, and nothing is converted: a Python int is an address (tensor.data_ptr(), 0 for
none), np.int32, np.int64 and np.float32 are scalars. A Python float is refused, because CuPy would pass it as a double.
CuPy loads the compiled kernels and launches them; torch owns all memory. Tests put a backend of their own in (use_backend), so
launchers run unchanged on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import Kernel

Scalar = int | np.int32 | np.int64 | np.float32
Shape = Sequence[int]
_ARGUMENT_TYPES = (int, np.int32, np.int64, np.float32)


class Backend(Protocol):
    """Where kernels run."""

    def prepare(self, kernel: Kernel, shared: int) -> Callable[[Shape, Shape, tuple[Scalar, ...]], None]:
        """Load a kernel and allow it `shared` bytes of dynamic shared memory; the result launches it with (grid, block, args)."""
        ...

    def stream(self, handle: int) -> AbstractContextManager[Any]:
        """Launch on the stream of this raw handle within the context."""
        ...


_backend: Backend | None = None
_prepared: dict[tuple[Kernel, int], Callable[[Shape, Shape, tuple[Scalar, ...]], None]] = {}


def launch(kernel: Kernel, grid: Shape, block: Shape, shared: int, *args: Scalar) -> None:
    """Launch on the current stream. The first launch of a kernel loads it (never within a graph capture: call `load` before).

    Raises KernelError when there is no usable GPU or no compiled kernel for it, TypeError for an argument of another type.
    """
    run = _prepared.get((kernel, shared)) or load(kernel, shared)
    for arg in args:
        if not isinstance(arg, _ARGUMENT_TYPES):
            raise TypeError(f"{kernel}: argument {arg!r} is {type(arg).__name__}; pass an address as int or a numpy scalar")
    run(grid, block, args)


def load(kernel: Kernel, shared: int) -> Callable[[Shape, Shape, tuple[Scalar, ...]], None]:
    """Load a kernel so that its first launch does no work but launching; returns what launches it."""
    run = _prepared.get((kernel, shared))
    if run is None:
        run = _prepared[(kernel, shared)] = backend().prepare(kernel, shared)
    return run


def on_stream(handle: int) -> AbstractContextManager[Any]:
    """Launches within the context go to the stream with this raw handle, e.g. torch.cuda.current_stream().cuda_stream."""
    return backend().stream(handle)


def open_backend(index: int) -> None:
    """Launch through CuPy on the GPU of this number from now on, in this thread. Raises KernelError when it cannot be used."""
    global _backend
    _backend = CupyBackend(index)


def backend() -> Backend:
    """What launches now; CuPy on the current device unless a test said otherwise. Raises KernelError without a usable GPU."""
    global _backend
    if _backend is None:
        _backend = CupyBackend()
    return _backend


@contextmanager
def use_backend(other: Backend) -> Iterator[None]:
    """Launch on `other` within the context."""
    global _backend
    before, _backend = _backend, other
    saved = dict(_prepared)
    _prepared.clear()
    try:
        yield
    finally:
        _backend = before
        _prepared.clear()
        _prepared.update(saved)


def architectures_for(major: int, minor: int) -> tuple[str, ...]:
    """Architectures whose cubins run on a GPU of this compute capability, best first. Raises KernelError when there is none."""
    runs = {
        8: ("89", "80") if minor >= 9 else ("80",),
        9: ("90a", "90") if minor == 0 else ("90",),  # an "a" cubin runs on exactly its own capability
        10: ("100",),
        12: ("120",),
    }.get(major)
    if runs is None:
        raise KernelError(
            f"this GPU has compute capability {major}.{minor}; quire's CUDA kernels need 8.0 (Ampere), 8.9, 9.0, 10.x or 12.x. "
            "Start with --device cpu to run without it"
        )
    return runs


class CupyBackend:
    """Launches through CuPy on the GPU `index`, or on the current one."""

    def __init__(self, index: int | None = None) -> None:
        try:
            import cupy
        except ImportError as error:
            raise KernelError(
                f"CUDA kernels are launched through CuPy, which cannot be imported ({error}); pip install 'quire[cuda]'"
            ) from None
        self._cupy = cupy
        try:
            if index is not None:
                cupy.cuda.Device(index).use()
            capability = cupy.cuda.Device().compute_capability  # "90", "120"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise KernelError(_no_device(str(error))) from None
        self.architectures = architectures_for(int(capability[:-1]), int(capability[-1]))
        self._modules: dict[tuple[str, Any], Any] = {}
        self._streams: dict[int, AbstractContextManager[Any]] = {}

    def prepare(self, kernel: Kernel, shared: int) -> Callable[[Shape, Shape, tuple[Scalar, ...]], None]:
        key = (kernel.source, kernel.defines)
        if key not in self._modules:
            from kernels_cuda.build.cache import find_or_compile

            path = find_or_compile(kernel.source, kernel.defines, self.architectures)
            self._modules[key] = self._cupy.RawModule(path=str(path))
        function = self._modules[key].get_function(kernel.entry)
        if shared > 48 << 10:  # above this the driver wants to be asked
            limit = self._cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
            if shared > limit:
                raise KernelError(f"{kernel} needs {shared} bytes of shared memory per block, this GPU has {limit}")
            function.max_dynamic_shared_size_bytes = shared

        def run(grid: Shape, block: Shape, args: tuple[Scalar, ...]) -> None:
            function(tuple(grid), tuple(block), args, shared_mem=shared)

        return run

    def stream(self, handle: int) -> AbstractContextManager[Any]:
        # Kept for good: there are few streams, and in some versions of CuPy a wrapper that goes takes the stream itself with it.
        made = self._streams.get(handle)
        if made is None:
            cuda = self._cupy.cuda
            if hasattr(cuda.Stream, "from_external"):
                made = cuda.Stream.from_external(_ExternalStream(handle))
            else:
                made = cuda.ExternalStream(handle)
            self._streams[handle] = made
        return made


class _ExternalStream:
    """A raw stream handle behind the protocol that Stream.from_external asks for."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _no_device(error: str) -> str:
    if "cudaErrorInsufficientDriver" in error:
        return f"the NVIDIA driver is missing or too old for CUDA 13 (it must be 580 or newer; see nvidia-smi): {error}"
    if "cudaErrorNoDevice" in error:
        return f"no NVIDIA GPU is visible to this process (see nvidia-smi, CUDA_VISIBLE_DEVICES): {error}"
    return f"the CUDA device cannot be used: {error}"
