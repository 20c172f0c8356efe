"""A step's rows, bfloat16, as tiles: as they are, or as whole numbers of two int8 digits beside int8 weights."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from kernels_cpu.dots import OFFSET
from kernels_cpu.native import pointer, widen, zeros_on_stack
from kernels_cpu.tile_layout import COLUMNS
from kernels_cpu.vectors import at, everywhere, math, put, read, spread

# A row's largest number becomes LARGEST = 127 * 256, so that both digits of any fit into int8. A row of numbers below LEAST is zero.
LARGEST, LEAST = np.float32(32512.0), np.float32(1e-30)
# Bytes of a step of a row.
_STEP_BYTES = 128
_MAGIC = 1.5 * 2**23  # what is added to this in float32 is rounded to a whole number, which the lowest bits then are
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, COLUMNS), ir.VectorType(_I32, COLUMNS)


@intrinsic
def _copy_line(_context, source, target):  # type: ignore[no-untyped-def]
    """64 bytes."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        put(builder, at(builder, arguments[0], 0, _INTS, 2), arguments[1], 0)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64), code


@njit(inline="always")
def lay_out(x_at, tiles_at, first, end, inputs, steps, blocks, at_once):  # type: ignore[no-untyped-def]
    """Rows first .. end of x as tiles [chunk of steps, block, step, 16 rows, 32 inputs]. Rows that a block lacks stay what they are."""
    for row in range(first, end):
        for begin in range(0, steps, at_once):
            count = min(at_once, steps - begin)
            source = x_at + (row * inputs + begin * 32) * 2
            target = tiles_at + (begin * blocks + row // 16 * count) * 1024 + row % 16 * 64
            whole = min(count, inputs // 32 - begin)
            for step in range(whole):
                _copy_line(source + step * 64, target + step * 1024)
            if whole < count:
                rest = carray(pointer(source + whole * 64), (32,), np.uint16)
                tile = carray(pointer(target + whole * 1024), (32,), np.uint16)
                for i in range(32):
                    tile[i] = rest[i] if (begin + whole) * 32 + i < inputs else np.uint16(0)


def as_digits(builder: ir.IRBuilder, value: ir.Value, factors: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """float32 [16] times factors as whole numbers = high * 256 + low, low from -128 on: all, high and low, int32."""
    shifted = math(builder, "fma", value, factors, everywhere(_FLOATS, _MAGIC))
    whole = builder.sub(builder.bitcast(shifted, _INTS), everywhere(_INTS, 0x4B400000))
    high = builder.ashr(builder.add(whole, everywhere(_INTS, 128)), everywhere(_INTS, 8))
    return whole, high, builder.sub(whole, builder.shl(high, everywhere(_INTS, 8)))


@njit(inline="always")
def row_scale(x, inputs):  # type: ignore[no-untyped-def]
    """What one is worth in a row, bfloat16 [inputs], as whole numbers, and what to multiply it with. NaN where the row is not finite."""
    largest = np.uint16(0)
    for i in range(inputs):
        largest = max(largest, x[i] & np.uint16(0x7FFF))
    most = widen(largest)
    scale = most / LARGEST if largest < np.uint16(0x7F80) else np.float32(np.nan)
    return scale, LARGEST / most if most > LEAST else np.float32(0.0)


@intrinsic
def _digits(_context, source, factor, high, low):  # type: ignore[no-untyped-def]
    """64 bfloat16 times factor, rounded to whole numbers: high * 256 + low, int8 both, low from -128 on."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        source_at, number, high_at, low_at = arguments
        factors = spread(builder, number, _FLOATS)
        for part in range(4):
            _, first, second = as_digits(builder, read(builder, source_at, part * COLUMNS * 2, COLUMNS, True), factors)
            for digit, place in ((first, high_at), (second, low_at)):
                put(builder, builder.trunc(digit, ir.VectorType(_I8, COLUMNS)), place, part * COLUMNS, 1)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.float32, types.int64, types.int64), code


@njit(inline="always")
def lay_out_digits(x_at, tiles_at, info_at, first, end, inputs, steps, blocks, at_once, dots):  # type: ignore[no-untyped-def]
    """As lay_out, [chunk, block, 2 digits, step, 16 rows, 64 inputs], and info: what one is worth in each row, float32 [blocks * 16].

    NaN is that worth where a row is not finite, so all its results are. Behind it, for dots, int32 [blocks * 16, 2], what is to be added
    to a row's sums since the weights have OFFSET too much.
    """
    scales = carray(pointer(info_at), (end,), np.float32)
    rests = carray(pointer(info_at + blocks * 64), (end, 2), np.int32)
    rest_at = zeros_on_stack(_STEP_BYTES)
    rest = carray(pointer(rest_at), (64,), np.uint16)
    for row in range(first, end):
        x = carray(pointer(x_at + row * inputs * 2), (inputs,), np.uint16)
        scales[row], factor = row_scale(x, inputs)
        rests[row, 0] = rests[row, 1] = 0
        for begin in range(0, steps, at_once):
            count = min(at_once, steps - begin)
            target = tiles_at + (begin * blocks + row // 16 * count) * 2048 + row % 16 * 64
            for step in range(count):
                place = begin + step
                source = x_at + (row * inputs + place * 64) * 2
                if (place + 1) * 64 > inputs:
                    for i in range(inputs - place * 64):
                        rest[i] = x[place * 64 + i]
                    source = rest_at
                _digits(source, factor, target + step * 1024, target + (count + step) * 1024)
            if dots:
                for digit in range(2):
                    total = np.int32(0)
                    for step in range(count):
                        line = carray(pointer(target + (digit * count + step) * 1024), (64,), np.int8)
                        for i in range(64):
                            total += np.int32(line[i])
                    rests[row, digit] -= total * np.int32(OFFSET)
