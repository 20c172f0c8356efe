"""AMX, the matrix unit of newer Intel CPUs, for compiled loops (native.py).

A thread has eight tiles of 16 rows of 64 bytes. `dot` adds to tile c, float32 [16, 16], the product of tile a, bfloat16 [16, 32], and tile
b, bfloat16 [16 pairs of inner index, 16 columns, 2]; `dot_int8` does it in int32 for int8 [16, 64] and [16 fours, 16 columns, 4]. A kernel
calls `configure` in each thread before and `release` after; between the two nothing else may use tiles. The instructions are written as
inline assembly, since numba's vectors have no type for a tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I64 = ir.IntType(64)


def emit(builder: ir.IRBuilder, text: str, *arguments: ir.Value) -> None:
    """One instruction on 64-bit registers. It may read and write any memory, so that nothing is moved across it."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * len(arguments))
    builder.asm(kind, text, ",".join(["r"] * len(arguments) + ["~{memory}"]), arguments, True)


def clear(builder: ir.IRBuilder, tile: int) -> None:
    emit(builder, f"tilezero %tmm{tile}")


def load(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    """16 rows of 64 bytes, `stride` bytes apart."""
    emit(builder, f"tileloadd ($0,$1,1), %tmm{tile}", address, stride)


def store(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    emit(builder, f"tilestored %tmm{tile}, ($0,$1,1)", address, stride)


def dot(builder: ir.IRBuilder, c: int, a: int, b: int) -> None:
    emit(builder, f"tdpbf16ps %tmm{b}, %tmm{a}, %tmm{c}")


def dot_int8(builder: ir.IRBuilder, c: int, a: int, b: int) -> None:
    emit(builder, f"tdpbssd %tmm{b}, %tmm{a}, %tmm{c}")


@intrinsic(prefer_literal=True)
def configure(_context: Any, address: Any, dots: Any) -> Any:
    """Take the configuration at `address`; all tiles become zero. Nothing if `dots`: another unit does the work (dots.py)."""
    if not isinstance(dots, types.IntegerLiteral):
        return None
    needed = not dots.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        if needed:
            emit(builder, "ldtilecfg ($0)", arguments[0])
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, dots), code


@intrinsic(prefer_literal=True)
def release(_context: Any, dots: Any) -> Any:
    """Give the tiles back, which spares the kernel saving them. Nothing if `dots`."""
    if not isinstance(dots, types.IntegerLiteral):
        return None
    needed = not dots.literal_value

    def code(_ctx, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        if needed:
            emit(builder, "tilerelease")
        return ir.Constant(_I64, 0)

    return types.int64(dots), code
