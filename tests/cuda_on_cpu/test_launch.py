"""The seam between launchers and machines, where there is no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels_cuda import launch as seam
from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import Kernel
from kernels_cuda.launch import CupyBackend, architectures_for, launch, on_stream, use_backend

KERNEL = Kernel("some.cu", "entry")


class Recorder:
    """A backend that keeps what it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[tuple[Kernel, int]] = []
        self.launched: list[tuple[Any, ...]] = []

    def prepare(self, kernel: Kernel, shared: int) -> Callable[..., None]:
        self.loaded.append((kernel, shared))
        return lambda *call: self.launched.append(call)

    def stream(self, handle: int) -> Any:
        return nullcontext(handle)


def test_a_kernel_is_loaded_once() -> None:
    recorder = Recorder()
    with use_backend(recorder):
        for _ in range(3):
            launch(KERNEL, (1,), (32,), 64, 5, np.float32(0.5))
        launch(KERNEL, (1,), (32,), 128)
        with on_stream(7) as handle:
            assert handle == 7
    assert recorder.loaded == [(KERNEL, 64), (KERNEL, 128)]
    assert recorder.launched[0] == ((1,), (32,), (5, np.float32(0.5)))


@pytest.mark.parametrize("argument", [0.5, None, "x", np.float64(1), np.zeros(1)])
def test_arguments_of_other_types_are_refused(argument: object) -> None:
    with use_backend(Recorder()), pytest.raises(TypeError, match="numpy scalar"):
        launch(KERNEL, (1,), (32,), 0, argument)  # type: ignore[arg-type]


@pytest.mark.parametrize("capability,expected", [((8, 0), ["80"]), ((8, 6), ["80"]), ((8, 9), ["89", "80"]), ((9, 0), ["90a", "90"]),
                                                 ((9, 1), ["90"]),
                                                 ((10, 3), ["100"]), ((12, 1), ["120"])])  # fmt: skip
def test_cubins_by_compute_capability(capability: tuple[int, int], expected: list[str]) -> None:
    assert list(architectures_for(*capability)) == expected


@pytest.mark.parametrize("capability", [(7, 5), (11, 0), (13, 0)])
def test_other_gpus_are_refused_with_a_way_out(capability: tuple[int, int]) -> None:
    with pytest.raises(KernelError, match=rf"compute capability {capability[0]}\.{capability[1]}.*--device cpu"):
        architectures_for(*capability)


def fake_cupy(error: str = "", capability: str = "90", limit: int = 100 << 10) -> Any:
    """As much of CuPy as the backend asks for."""

    class CUDARuntimeError(RuntimeError):
        pass

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": limit}  # noqa: RUF012

        @property
        def compute_capability(self) -> str:
            if error:
                raise CUDARuntimeError(error)
            return capability

    functions: dict[str, Any] = {}

    class RawModule:
        def __init__(self, path: str) -> None:
            self.path = path

        def get_function(self, name: str) -> Any:
            calls: list[Any] = []

            class Function:
                max_dynamic_shared_size_bytes = 0

                def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
                    calls.append((grid, block, args, shared_mem))

            functions[name] = function = Function()
            function.calls = calls  # type: ignore[attr-defined]
            return function

    class Stream:
        @classmethod
        def from_external(cls, stream: Any) -> Any:
            made = nullcontext(stream.__cuda_stream__()[1])
            return made

    cuda = SimpleNamespace(Device=Device, Stream=Stream, runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError))
    return SimpleNamespace(cuda=cuda, RawModule=RawModule, functions=functions)


@pytest.mark.parametrize("error,message", [
    ("cudaErrorInsufficientDriver: CUDA driver version is insufficient", "driver is missing or too old"),
    ("cudaErrorNoDevice: no CUDA-capable device is detected", "no NVIDIA GPU is visible"),
    ("cudaErrorUnknown", "cannot be used: cudaErrorUnknown"),
])  # fmt: skip
def test_no_usable_gpu(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(error))
    with pytest.raises(KernelError, match=message):
        CupyBackend()


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(seam, "_backend", None)
    with pytest.raises(KernelError, match=r"pip install 'quire\[cuda\]'"):
        launch(KERNEL, (1,), (32,), 0)


def test_large_shared_memory_is_asked_for_and_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr("kernels_cuda.build.cache.find_or_compile", lambda *_: "some.cubin")
    with use_backend(CupyBackend()):
        launch(KERNEL, (2, 3), (32,), 64 << 10, 5)
        function = cupy.functions["entry"]
        assert function.max_dynamic_shared_size_bytes == 64 << 10
        assert function.calls == [((2, 3), (32,), (5,), 64 << 10)]
        with pytest.raises(KernelError, match="needs 204800 bytes of shared memory per block, this GPU has 102400"):
            launch(KERNEL, (1,), (32,), 200 << 10)


def test_a_stream_has_one_wrapper_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    backend = CupyBackend()
    first, other = backend.stream(5), backend.stream(6)
    assert backend.stream(5) is first is not other
    with first as handle:
        assert handle == 5
