"""Compiles kernels_cuda's unchanged sources with g++ and launches them on CPU tensors, as a backend of kernels_cuda.launch.

include/cuda_on_cpu.h says what is modelled. Shared objects are cached under CUDA_ON_CPU_CACHE, or $XDG_CACHE_HOME/quire/emulator,
by a hash of everything that went into them and of nothing else.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kernels_cuda import launch
from kernels_cuda.kernel import Kernel

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "kernels_cuda" / "src"
COMPILER = "g++"
# Kernels pun types through pointers, hence no strict aliasing; x86-64-v3 has the fp16 conversions and fused multiply-add.
FLAGS = "-std=c++20 -march=x86-64-v3 -w -fPIC -shared -fno-strict-aliasing -fvisibility=hidden -fno-gnu-unique".split()
# The sources as they are run often, and -O2 saves a third of that; edited ones, with a bug planted, run a few times, and -Og compiles in
# two thirds of the time (measured on paged_prefill.cu and sampler.cu).
OPTIMIZED, QUICK = "-O2", "-Og"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
ENTRY = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')


def missing_compiler() -> str | None:
    """Why sources cannot be built here, or None."""
    if platform.machine() != "x86_64":
        return f"the emulator is written for x86-64, not {platform.machine()}"
    return None if shutil.which(COMPILER) else f"{COMPILER} is not installed; it compiles the kernels for the CPU"


class EmulationError(RuntimeError):
    """The kernel did something that a GPU would not forgive; the message names block and thread."""


class Config(ctypes.Structure):
    """emu::Config of machine.h."""

    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_size_t), ("seed", ctypes.c_uint64))


class Emulator:
    """A backend of kernels_cuda.launch.

    seed: the order of threads and blocks (Config in machine.h). sources: another folder of .cu files. flags: more for the compiler.
    """

    def __init__(self, seed: int = 0, sources: Path = SOURCES, flags: Sequence[str] = ()) -> None:
        self.seed, self.sources, self.flags = seed, sources, tuple(flags)

    def prepare(self, kernel: Kernel, shared: int) -> Callable[[Sequence[int], Sequence[int], tuple[Any, ...]], None]:
        """As launch.Backend says; the launch raises EmulationError when the kernel misbehaves, TypeError for wrong arguments."""
        library = _load(build(self.sources / kernel.source, kernel.defines, self.flags))
        run, signature = getattr(library, f"emu_launch_{kernel.entry}"), _signature(library, kernel.entry)

        def call(grid: Sequence[int], block: Sequence[int], args: tuple[Any, ...]) -> None:
            values = _marshal(kernel, signature, args)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            shape = [(*axes, 1, 1)[:3] for axes in (grid, block)]
            config = Config((ctypes.c_uint * 3)(*shape[0]), (ctypes.c_uint * 3)(*shape[1]), shared, self.seed)
            if run(ctypes.byref(config), pointers):
                raise EmulationError(f"{kernel}: {library.emu_error().decode()}")

        return call

    def stream(self, handle: int) -> AbstractContextManager[Any]:
        """One order of launches is all there is."""
        return nullcontext()


@contextmanager
def emulated(seed: int = 0, sources: Path = SOURCES) -> Iterator[None]:
    """Launchers run here, in this order of threads, within the context."""
    with launch.use_backend(Emulator(seed, sources)):
        yield


def _marshal(kernel: Kernel, signature: tuple[int, ...], args: tuple[Any, ...]) -> list[Any]:
    """C values of the arguments; the kernel's own signature says what each must be, which a GPU's launch would not check."""
    if len(args) != len(signature):
        raise TypeError(f"{kernel} takes {len(signature)} arguments, {len(args)} given")
    values: list[Any] = []
    for at, (size, arg) in enumerate(zip(signature, args)):
        if (size == 0) != isinstance(arg, int):
            raise TypeError(f"{kernel}: argument {at} is {'an address' if size == 0 else f'a scalar of {size} bytes'}, {arg!r} given")
        if isinstance(arg, int):
            values.append(ctypes.c_uint64(arg))
        elif arg.nbytes != size:
            raise TypeError(f"{kernel}: argument {at} has {size} bytes, {arg!r} has {arg.nbytes}")
        else:
            values.append(np.ctypeslib.as_ctypes_type(arg.dtype)(arg.item()))
    return values


def build(path: Path, defines: Sequence[tuple[str, str]], flags: Sequence[str] = ()) -> Path:
    """The shared object of one variant of a .cu file. Raises EmulationError with the compiler's words when it does not compile."""
    text = path.read_text()
    macros = "".join(f"#define {name} {value}\n" for name, value in defines)
    exports = "".join(f"EMU_KERNEL({entry})\n" for entry in ENTRY.findall(text))
    source = f'#include "cuda_on_cpu.h"\n{macros}#line 1 "{path.name}"\n{text}\n{exports}'
    folders = tuple(dict.fromkeys((path.parent, SOURCES)))  # the first that has a header wins
    include = [f"-I{folder}" for folder in folders]
    flags = (*FLAGS, OPTIMIZED if path.parent == SOURCES else QUICK, *flags)
    key = _hash(source, *headers(text, folders), _header_text(), _compiler_version(), *flags)
    target = cache_folder() / f"{path.stem}-{key}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            unit = Path(folder) / f"{path.stem}.cpp"
            unit.write_text(source)
            _compile([*flags, *_precompiled(flags), *include, str(unit), "-o", f"{folder}/out.so"])
            os.replace(f"{folder}/out.so", target)
    return target


def headers(text: str, folders: Sequence[Path]) -> list[str]:
    """The texts of our headers that a source includes, also through others, in the order of first mention."""
    found: dict[str, str] = {}
    unread = [text]
    while unread:
        for name in INCLUDE.findall(unread.pop()):
            if name not in found:
                found[name] = next(folder / name for folder in folders if (folder / name).is_file()).read_text()
                unread.append(found[name])
    return list(found.values())


@cache
def _precompiled(flags: tuple[str, ...]) -> list[str]:
    """Include options that find the emulator's header compiled already, which is most of a build's time."""
    folder = cache_folder() / f"header-{_hash(_header_text(), _compiler_version(), *flags)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as making:
            shutil.copytree(HERE / "include", f"{making}/include")
            _compile([*flags, "-x", "c++-header", f"{making}/include/cuda_on_cpu.h", "-o", f"{making}/include/cuda_on_cpu.h.gch"])
            try:
                os.rename(f"{making}/include", folder)
            except OSError:  # another process was first
                if not folder.exists():
                    raise
    return [f"-I{folder}"]


def _compile(arguments: Sequence[str]) -> None:
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise EmulationError(f"{COMPILER} refused the source:\n{done.stderr[:4000]}")


@cache
def _load(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    library.emu_error.restype = ctypes.c_char_p
    return library


@cache
def _signature(library: Any, entry: str) -> tuple[int, ...]:
    """Each argument's size in bytes, 0 for a pointer."""
    sizes = (ctypes.c_int * 64)()
    return tuple(sizes[: getattr(library, f"emu_arguments_{entry}")(sizes)])


@cache
def _header_text() -> str:
    return "".join(path.read_text() for path in sorted((HERE / "include").rglob("*.h")))


@cache
def _compiler_version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout


@cache
def cache_folder() -> Path:
    """Where shared objects are kept between runs."""
    base = os.environ.get("CUDA_ON_CPU_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()[:24]
