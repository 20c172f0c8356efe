"""AMX in software, for machines without it: what a kernel emits for its tiles becomes plain code on memory of each thread's own.

The kernels' layouts, loops and ends are the real ones; only the instructions of kernels_cpu/tiles.py are others. What is built this way
is built in this process and reaches no cache, whose key does not know of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba.core import cgutils

from gpu_workers.device.kernel_sets import KernelSet
from kernels_cpu import build, features, tile_layout, tiles

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_INTS, _FLOATS = ir.VectorType(_I32, 16), ir.VectorType(ir.FloatType(), 16)
_MEMORY = np.zeros(64 * 8 * tile_layout.BYTES, np.uint8)


def use(patch: pytest.MonkeyPatch, kind: type[KernelSet]) -> None:
    """Until `patch` is undone, kernels of `kind` are built for these tiles."""
    patch.setattr(kind, "start", lambda self, recipe: self.deliver(build.build(recipe)))
    patch.setattr(features, "amx", lambda: True)
    for name, function in {"emit": _nothing, "clear": _clear, "load": _load, "store": _store, "dot": _dot, "dot_int8": _dot_int8}.items():
        patch.setattr(tiles, name, function)


def _nothing(_builder: ir.IRBuilder, _text: str, *_arguments: ir.Value) -> None:
    pass


def _row(builder: ir.IRBuilder, tile: int, row: ir.Value) -> ir.Value:
    """Where a row of this thread's tile lies."""
    number = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "omp_get_thread_num")
    thread = builder.zext(builder.call(number, []), _I64)
    begin = builder.add(_I64(_MEMORY.ctypes.data + tile * tile_layout.BYTES), builder.mul(thread, _I64(8 * tile_layout.BYTES)))
    return builder.add(begin, builder.mul(row, _I64(tile_layout.ROW_BYTES)))


def _at(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type = _INTS) -> ir.Value:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()), typ=kind)
    value.align = 1
    return value


def _put(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _clear(builder: ir.IRBuilder, tile: int) -> None:
    with cgutils.for_range(builder, _I64(16)) as loop:
        _put(builder, ir.Constant(_INTS, [0] * 16), _row(builder, tile, loop.index))


def _load(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    with cgutils.for_range(builder, _I64(16)) as loop:
        _put(builder, _at(builder, builder.add(address, builder.mul(loop.index, stride))), _row(builder, tile, loop.index))


def _store(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    with cgutils.for_range(builder, _I64(16)) as loop:
        _put(builder, _at(builder, _row(builder, tile, loop.index)), builder.add(address, builder.mul(loop.index, stride)))


def _products(builder: ir.IRBuilder, c: int, a: int, b: int, int8: bool) -> None:
    """c [16, 16] += a [16, 16 groups] . b [16 groups, 16], a group four bytes: two bfloat16 or four int8."""

    def part(bits: ir.Value, number: int) -> ir.Value:
        def all_lanes(value: int) -> ir.Constant:
            return ir.Constant(_INTS, [value] * 16)

        if int8:
            return builder.ashr(builder.shl(bits, all_lanes(24 - 8 * number)), all_lanes(24))
        widened = builder.and_(bits, all_lanes(0xFFFF0000)) if number else builder.shl(bits, all_lanes(16))
        return builder.bitcast(widened, _FLOATS)

    with cgutils.for_range(builder, _I64(16)) as rows:
        target = _row(builder, c, rows.index)
        total = cgutils.alloca_once(builder, _INTS if int8 else _FLOATS)
        builder.store(_at(builder, target, _INTS if int8 else _FLOATS), total)
        with cgutils.for_range(builder, _I64(16)) as groups:
            group = _at(builder, builder.add(_row(builder, a, rows.index), builder.mul(groups.index, _I64(4))), _I32)
            first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), group, _I32(0))
            spread = builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * 16))
            others = _at(builder, _row(builder, b, groups.index))
            for number in range(4 if int8 else 2):
                x, y, sum_of = part(spread, number), part(others, number), builder.load(total)
                builder.store(builder.add(sum_of, builder.mul(x, y)) if int8 else builder.fadd(sum_of, builder.fmul(x, y)), total)
        _put(builder, builder.load(total), target)


def _dot(builder: ir.IRBuilder, c: int, a: int, b: int) -> Any:
    _products(builder, c, a, b, False)


def _dot_int8(builder: ir.IRBuilder, c: int, a: int, b: int) -> Any:
    _products(builder, c, a, b, True)
