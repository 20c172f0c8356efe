"""What this machine's CPU can do, as Linux tells it, and what AMX wants of a process before it may be used."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import numpy as np

# Lines of /proc/cpuinfo that say what a processor is; the others say how it fares.
_IDENTITY = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
}  # fmt: skip
_X86 = ("x86_64", "AMD64")
# arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): Linux lets a process use tiles once it has asked.
_ARCH_PRCTL, _ASK, _TILE_DATA = 158, 0x1023, 18


@cache
def identity() -> str:
    """The kind of the first processor: machine code for one is right for all of the same kind."""
    lines = [platform.machine()]
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    lines += [line for line in first.splitlines() if line.partition(":")[0].strip() in _IDENTITY]
    return "\n".join(lines)


@cache
def _flags() -> frozenset[str]:
    """x86's names for what it can do; empty elsewhere."""
    if platform.machine() not in _X86:
        return frozenset()
    return frozenset(next((line for line in identity().splitlines() if line.startswith("flags")), "").split())


def wide() -> bool:
    """Whether vectors have 512 bits."""
    return "avx512f" in _flags()


def vnni() -> bool:
    """Whether there are vectors of 512 bits and dot products of bytes on them."""
    return _flags() >= {"avx512f", "avx512bw", "avx512_vnni"}


def dots() -> bool:
    """Whether there are dot products of bfloat16 and of bytes (dots.py)."""
    return _flags() >= {"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni"}


@cache
def amx() -> bool:
    """Whether this CPU multiplies bfloat16 and int8 tiles, beside the vectors of dots.py, and Linux lets this process: it is asked."""
    if not _flags() >= {"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512vl", "avx512_bf16"}:
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK, _TILE_DATA) == 0)


def tile_configuration() -> np.ndarray:
    """What tiles.configure reads: palette 1, all eight tiles of full size."""
    block = np.zeros(64, np.uint8)
    block[0] = 1
    block[16:32].view(np.uint16)[:] = 64
    block[48:56] = 16
    return block
