"""What kernels are written with: numba functions that know of threads, addresses and the bits of numbers.

A kernel takes the address of an int64 array of arguments. Each of the threads that run it (image.py) finds out which one it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.vectors import prefetch, put

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())
_I32, _F32 = ir.IntType(32), ir.FloatType()
# What LLVM may take for granted where the order of a sum does not matter.
FAST = ("reassoc", "contract", "nsz", "arcp")


@dataclass(frozen=True)
class Source:
    """A kernel before it is compiled: a function of the address of its int64 arguments, and what LLVM may take for granted in it.

    It must not raise and cannot allocate: the machine code stands alone, without numba's runtime (compiler.py).
    """

    run: Callable[[Any], None]
    fastmath: tuple[str, ...]


def kernel(fastmath: tuple[str, ...] = ()) -> Callable[[Callable[[Any], None]], Source]:
    """Makes a Source of the function below it."""
    return lambda run: Source(run, fastmath)


@intrinsic(prefer_literal=True)
def zeros_on_stack(_context, size):  # type: ignore[no-untyped-def]
    """The address of `size` bytes of zeros, a multiple of 64, for as long as the kernel runs; the same ones each time it comes here."""
    if not isinstance(size, types.IntegerLiteral) or size.literal_value % 64:
        return None
    lines = size.literal_value // 64

    def code(_ctx, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        line = ir.VectorType(ir.IntType(64), 8)
        space = cgutils.alloca_once(builder, ir.ArrayType(line, lines))
        space.align = 64
        address = builder.ptrtoint(space, ir.IntType(64))
        for place in range(lines):
            put(builder, ir.Constant(line, [0] * 8), address, place * 64, 64)
        return address

    return types.int64(size), code


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


# The next three are intrinsics, though numba could read them as functions: for each function that it puts into a kernel, it copies all
# of the kernel.


@intrinsic
def widen(_context, bits):  # type: ignore[no-untyped-def]
    """bfloat16 bits (uint16) as float32."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], _I32), _I32(16)), _F32)

    return types.float32(types.uint16), code


@intrinsic
def narrow(_context, number):  # type: ignore[no-untyped-def]
    """float32 as bfloat16 bits, to nearest even; a NaN stays one."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        bits = builder.bitcast(arguments[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, odd), _I32(0x7FFF)), _I32(16))
        is_nan = builder.icmp_unsigned(">", builder.and_(bits, _I32(0x7FFFFFFF)), _I32(0x7F800000))
        return builder.trunc(builder.select(is_nan, _I32(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(types.float32), code


@intrinsic
def exponential(_context, x):  # type: ignore[no-untyped-def]
    """e to the x for x <= 0, relative error below 3e-7; a loop over it becomes vector code, which one over libm's does not.

    Range reduction to half a binary octave and a Taylor polynomial, exponent put in by its bits.
    """

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        x = builder.select(builder.fcmp_ordered(">", arguments[0], _F32(-87.0)), arguments[0], _F32(-87.0))
        floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32]), "llvm.floor.f32")
        octave = builder.call(floor, [builder.fadd(builder.fmul(x, _F32(1.44269504088896341)), _F32(0.5))])
        r = builder.fsub(x, builder.fmul(octave, _F32(0.693359375)))
        r = builder.fadd(r, builder.fmul(octave, _F32(2.12194440e-4)))
        p = _F32(1.0 / 5040.0)
        for factor in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
            p = builder.fadd(builder.fmul(p, r), _F32(factor))
        exponent = builder.shl(builder.add(builder.fptosi(octave, _I32), _I32(127)), _I32(23))
        return builder.fmul(p, builder.bitcast(exponent, _F32))

    return types.float32(types.float32), code


@intrinsic
def ask_for(_context, address, size):  # type: ignore[no-untyped-def]
    """Have the memory there brought into the second cache, line by line, while this thread goes on. Any address will do."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        with cgutils.for_range_slice(builder, ir.IntType(64)(0), arguments[1], ir.IntType(64)(64)) as (offset, _):
            prefetch(builder, builder.add(arguments[0], offset))
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.int64, types.int64), code
