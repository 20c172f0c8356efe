"""Images of machine code: how they are written, checked, mapped into this process and run.

Kernels run on the very libgomp that torch runs on (GOMP_parallel), so there is one thread pool and not two that fight over the
cores, and a call costs about two microseconds. Whoever loads an image has imported torch before.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# What kernels may call.
_OF_GOMP = ("GOMP_barrier", "omp_get_thread_num")
IMPORTS = (*_OF_GOMP, "memcpy", "memmove", "memset")
_MAGIC = b"quire CPU kernels 1\n"
_KEPT: list[mmap.mmap] = []  # images are never unmapped: a launcher is nothing but an address


@dataclass(frozen=True)
class Image:
    """code: as it is mapped. symbols: where in it each kernel begins; imports: where the address of each of these functions belongs."""

    code: bytes
    symbols: Mapping[str, int]
    imports: Mapping[str, int]

    def to_bytes(self) -> bytes:
        """For a file: magic, SHA-256 of the rest, length of the header, header as JSON, code."""
        header = json.dumps({"symbols": dict(self.symbols), "imports": dict(self.imports)}).encode()
        rest = struct.pack("<I", len(header)) + header + self.code
        return _MAGIC + hashlib.sha256(rest).digest() + rest

    @classmethod
    def from_bytes(cls, content: bytes) -> Image:
        """Raises ValueError for what to_bytes did not make, or not all of it."""
        rest = content[len(_MAGIC) + 32 :]
        if not content.startswith(_MAGIC) or hashlib.sha256(rest).digest() != content[len(_MAGIC) : len(_MAGIC) + 32]:
            raise ValueError("no image of kernels, or a damaged one")
        (length,) = struct.unpack_from("<I", rest)
        header = json.loads(rest[4 : 4 + length])
        return cls(rest[4 + length :], header["symbols"], header["imports"])

    def load(self) -> dict[str, int]:
        """Map it; the address of each kernel. Raises OSError if this machine does not allow it."""
        library, process = _torch(), ctypes.CDLL(None, use_errno=True)
        memory = mmap.mmap(-1, len(self.code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = self.code
        for name, slot in self.imports.items():
            function = getattr(library if name in _OF_GOMP else process, name)
            struct.pack_into("<Q", memory, slot, ctypes.cast(function, ctypes.c_void_p).value)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        # Linux sees to it that instructions are fetched anew when memory becomes executable (AArch64).
        size, rights = ctypes.c_size_t(len(self.code)), mmap.PROT_READ | mmap.PROT_EXEC
        if process.mprotect(ctypes.c_void_p(address), size, rights):
            raise OSError(ctypes.get_errno(), "memory for kernels cannot be made executable")
        _KEPT.append(memory)
        return {name: address + place for name, place in self.symbols.items()}


def run(kernel: int, arguments: np.ndarray, threads: int) -> None:
    """Run the kernel at this address on `threads` threads, each with the same int64 arguments; returns when all are done."""
    _parallel()(kernel, arguments.ctypes.data, threads, 0)


def launcher(kernel: int, arguments: np.ndarray) -> Callable[[int], None]:
    """`run` for arguments that stay at one address."""
    data, parallel = arguments.ctypes.data, _parallel()

    def launch(threads: int) -> None:
        parallel(kernel, data, threads, 0)

    return launch


def _torch() -> ctypes.CDLL:
    """torch's library, which finds torch's libgomp, under whatever name its build brought it along (on Arm it has a hash in it).

    A symbol is looked for in a library and in all that it is linked to. By its plain name another libgomp would be found, with a second
    pool of threads, or none. Raises OSError where torch is not loaded.
    """
    return ctypes.CDLL("libtorch_cpu.so")


def _parallel() -> Callable[..., None]:
    parallel = _torch().GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
