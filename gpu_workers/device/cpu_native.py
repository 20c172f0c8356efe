"""Compiled loops on torch's own threads.

A kernel is a numba `cfunc` that takes the address of an int64 array of arguments. It is run by the very libgomp that torch runs on
(GOMP_parallel), so there is one thread pool and not two that fight over the cores, and a call costs about two microseconds.
Importing this module imports numba: do that in the background (attention/cpu_decode.py does).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
import torch  # noqa: F401 - loads the library below
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gpu_workers.device.cpu_vectors import prefetch

# torch's libgomp, under whatever name its build brought it along (on Arm it has a hash in it): a symbol is looked for in a library and in
# all that it is linked to. By its plain name another one would be found, with a second pool of threads, or none.
_GOMP = ctypes.CDLL("libtorch_cpu.so")
_PARALLEL = _GOMP.GOMP_parallel
_PARALLEL.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_PARALLEL.restype = None
# Under a name of ours, so that what numba caches does not depend on where the library lies in this process.
llvmlite.binding.add_symbol("omp_get_thread_num", ctypes.cast(_GOMP.omp_get_thread_num, ctypes.c_void_p).value)
llvmlite.binding.add_symbol("GOMP_barrier", ctypes.cast(_GOMP.GOMP_barrier, ctypes.c_void_p).value)
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())
signature = types.void(types.voidptr)


def run(kernel: Any, arguments: np.ndarray, threads: int) -> None:
    """Run a compiled kernel on `threads` threads, each with the same int64 arguments; returns when all are done."""
    _PARALLEL(kernel.address, arguments.ctypes.data, threads, 0)


def launcher(kernel: Any, arguments: np.ndarray) -> Callable[[int], None]:
    """`run` for arguments that stay at one address."""
    address, data = kernel.address, arguments.ctypes.data

    def launch(threads: int) -> None:
        _PARALLEL(address, data, threads, 0)

    return launch


@intrinsic
def pointer(_context, source):  # type: ignore[no-untyped-def]
    """An int64 address as a pointer."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), code


@intrinsic
def as_float(_context, bits):  # type: ignore[no-untyped-def]
    """The float32 with these 32 bits."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), code


@intrinsic
def as_bits(_context, number):  # type: ignore[no-untyped-def]
    """The 32 bits of a float32."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), code


@njit(inline="always")
def widen(bits):  # type: ignore[no-untyped-def]
    """bfloat16 bits (uint16) as float32."""
    return as_float(np.uint32(bits) << np.uint32(16))


@njit(inline="always")
def narrow(number):  # type: ignore[no-untyped-def]
    """float32 as bfloat16 bits, to nearest even; a NaN stays one."""
    bits = as_bits(number)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if is_nan else rounded)


@njit(inline="always")
def exponential(x):  # type: ignore[no-untyped-def]
    """e to the x for x <= 0, relative error below 3e-7; a loop over it becomes vector code, which one over libm's does not.

    Range reduction to half a binary octave and a Taylor polynomial, exponent put in by its bits.
    """
    x = max(x, np.float32(-87.0))
    octave = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - octave * np.float32(0.693359375) + octave * np.float32(2.12194440e-4)
    p = np.float32(1.0 / 5040.0)
    p = p * r + np.float32(1.0 / 720.0)
    p = p * r + np.float32(1.0 / 120.0)
    p = p * r + np.float32(1.0 / 24.0)
    p = p * r + np.float32(1.0 / 6.0)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * as_float(np.uint32(np.int32(octave) + np.int32(127)) << np.uint32(23))


@intrinsic
def ask_for(_context, address, size):  # type: ignore[no-untyped-def]
    """Have the memory there brought into the second cache, line by line, while this thread goes on. Any address will do."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        with cgutils.for_range_slice(builder, ir.IntType(64)(0), arguments[1], ir.IntType(64)(64)) as (offset, _):
            prefetch(builder, builder.add(arguments[0], offset))
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), code
