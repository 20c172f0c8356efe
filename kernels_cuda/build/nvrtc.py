"""NVRTC through ctypes: source text in, cubin and log out.

Needs the packages nvidia-cuda-nvrtc and nvidia-cuda-runtime (for its headers), or a CUDA toolkit; no driver and no GPU.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kernels_cuda.errors import KernelError

MAJOR = 13  # cubins of this major version run on its drivers (580 and newer)
HOW_TO_INSTALL = "pip install 'quire[kernels]' (nvidia-cuda-nvrtc and nvidia-cuda-runtime 13), or set CUDA_PATH to a CUDA 13 toolkit"


def available() -> bool:
    """Whether sources can be compiled here."""
    return _library_path() is not None and _include_path() is not None


@cache
def version() -> str:
    """The compiler's version as exactly as it is known, e.g. '13.0 (13.0.88)'. Raises KernelError without NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    path = _library_path()
    try:
        packaged = importlib.metadata.version("nvidia-cuda-nvrtc") if path and "site-packages" in path.parts else "toolkit"
    except importlib.metadata.PackageNotFoundError:
        packaged = "toolkit"
    return f"{major.value}.{minor.value} ({packaged})"


def compile_cubin(name: str, source: str, headers: Mapping[str, str], options: Sequence[str]) -> tuple[bytes, str]:
    """The cubin and the log of `source`. headers: texts that #include may name.

    Raises KernelError, with the log, when it does not compile.
    """
    lib = _nvrtc()
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
    created = lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names)
    _check(created, "nvrtcCreateProgram")
    try:
        all_options = [*options, f"-I{_include_path()}"]
        given = (ctypes.c_char_p * len(all_options))(*(option.encode() for option in all_options))
        result = lib.nvrtcCompileProgram(program, len(all_options), given)
        log = _bytes(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).rstrip(b"\0").decode(errors="replace")
        if result:
            raise KernelError(f"{name} does not compile with {' '.join(options)}:\n{log}")
        return _bytes(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program), log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(size_of: Any, read: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), "reading a size")
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer), "reading a result")
    return buffer.raw


def _check(result: int, what: str) -> None:
    if result:
        raise KernelError(f"NVRTC: {what} failed: {_nvrtc().nvrtcGetErrorString(result).decode()}")


@cache
def _nvrtc() -> Any:
    path = _library_path()
    if path is None or _include_path() is None:
        missing = "libnvrtc" if path is None else "cuda_fp16.h"
        raise KernelError(f"the CUDA compiler is not installed ({missing} not found): {HOW_TO_INSTALL}")
    # Loaded first, because NVRTC looks for it by its bare name.
    for builtins in sorted(path.parent.glob(f"libnvrtc-builtins.so.{MAJOR}*")):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    library.nvrtcCompileProgram.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    for name in "GetProgramLogSize GetProgramLog GetCUBINSize GetCUBIN".split():
        getattr(library, f"nvrtc{name}").argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    return library


def _roots() -> list[Path]:
    """Where NVIDIA's pip packages lie, then a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) / f"cu{MAJOR}" for place in (spec.submodule_search_locations or [])] if spec else []
    toolkits = [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return [*packages, *toolkits, Path(f"/usr/local/cuda-{MAJOR}"), Path("/usr/local/cuda")]


@cache
def _library_path() -> Path | None:
    for root in _roots():
        for folder in ("lib", "lib64"):
            path = root / folder / f"libnvrtc.so.{MAJOR}"
            if path.is_file():
                return path
    return None


@cache
def _include_path() -> Path | None:
    for root in _roots():
        if (root / "include" / "cuda_fp16.h").is_file():
            return root / "include"
    return None
