"""Products with int4 weights by VNNI, instructions that add up four products of bytes.

The weights are the panels of linear_layout.py and so are the arguments. A row of bfloat16 becomes whole
numbers of 16 bits (tile_rows.py), whose two digits are multiplied with the weights' four bits each; the sums of a group are exact,
and its scale comes after. Against widening weights to float32, that is a third of the instructions.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.linear_layout import (
    ALONE,
    BIAS,
    GROUP,
    GROUP_BYTES,
    INPUTS,
    NEXT,
    NIBBLES,
    NUM_ARGUMENTS,
    OUT,
    OUTPUTS,
    PADDED,
    PANEL,
    PORTION,
    ROWS,
    SCRATCH,
    THREADS,
    VNNI_ROW_BYTES,
    WEIGHTS,
    WORDS,
    X,
)
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import Source, barrier, kernel, narrow, pointer, thread_number, widen, zeros_on_stack
from kernels_cpu.tile_rows import as_digits, row_scale
from kernels_cpu.vectors import at, everywhere, math, prefetch, put, read, spread, write

AHEAD = 8 * 1024
_REST_BYTES = 2 * GROUP
LANES = 16
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS, _BYTES = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I8, LANES)


@intrinsic
def _lay_out_group(_context, source, factor, target):  # type: ignore[no-untyped-def]
    """GROUP bfloat16 of a row, times factor, as `target` wants them."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        source_at, number, target_at = arguments
        factors, total = spread(builder, number, _FLOATS), None
        # Of 16 inputs: two words, each [even, odd][high, low][4].
        order = [digit * LANES + word * 8 + parity + 2 * i for word in (0, 1) for parity in (0, 1) for digit in (0, 1) for i in range(4)]
        mask = ir.Constant(ir.VectorType(_I32, 2 * LANES), order)
        for half in range(GROUP // LANES):
            whole, high, low = as_digits(builder, read(builder, source_at, half * LANES * 2, LANES, True), factors)
            total = whole if total is None else builder.add(total, whole)
            digits = [builder.trunc(digit, _BYTES) for digit in (high, low)]
            put(builder, builder.shuffle_vector(*digits, mask), target_at, half * 2 * LANES, 1)
        kind = ir.FunctionType(_I32, [_INTS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
        put(builder, builder.mul(builder.call(reduce, [total]), _I32(-8)), target_at, 2 * GROUP, 1)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.float32, types.int64), code


@njit(inline="always")
def _lay_out(x_at, digits_at, scales_at, first, end, rows, inputs, padded, height):  # type: ignore[no-untyped-def]
    """Blocks first .. end of `height` rows each, as [block, group, height, VNNI_ROW_BYTES], and each row's scale."""
    groups, row_bytes = padded // GROUP, VNNI_ROW_BYTES
    rest_at = zeros_on_stack(_REST_BYTES)
    rest = carray(pointer(rest_at), (GROUP,), np.uint16)
    scales = carray(pointer(scales_at), (end * height,), np.float32)
    for block in range(first, end):
        for r in range(height):
            row = block * height + r
            # A row that a block lacks is the last one again.
            x = carray(pointer(x_at + min(row, rows - 1) * inputs * 2), (inputs,), np.uint16)
            scale, factor = row_scale(x, inputs)
            scales[row] = scale
            for group in range(groups):
                source = x.ctypes.data + group * GROUP * 2
                if (group + 1) * GROUP > inputs:
                    for i in range(inputs - group * GROUP):
                        rest[i] = x[group * GROUP + i]
                    source = rest_at
                _lay_out_group(source, factor, digits_at + ((block * groups + group) * height + r) * row_bytes)


def _add_products(builder: ir.IRBuilder, total: ir.Value, small: ir.Value, digits: ir.Value) -> ir.Value:
    """total int32 [16] += the sums of each four unsigned bytes of `small` times four signed ones of `digits`."""
    kind = ir.FunctionType(_INTS, [_INTS] * 3)
    return builder.asm(kind, "vpdpbusd $3, $2, $0", "=v,0,v,v", [total, small, digits], False)


@intrinsic(prefer_literal=True)
def _multiply_panel(_context, digits, weights, groups, sums, rows):  # type: ignore[no-untyped-def]
    """sums float32 [rows, PANEL] = digits [groups, rows, VNNI_ROW_BYTES] . a panel of int4 weights [groups]."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    num_rows = rows.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        digits_at, weights_at, count, sums_at = arguments[:4]
        zeros = everywhere(_FLOATS, 0.0)
        totals = [[cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(num_rows)]
        nibbles = everywhere(_INTS, 0x0F0F0F0F)
        with cgutils.for_range(builder, count) as loop:
            here = builder.add(digits_at, builder.mul(loop.index, _I64(num_rows * VNNI_ROW_BYTES)))
            panel = builder.add(weights_at, builder.mul(loop.index, _I64(GROUP_BYTES)))
            for line in range(0, GROUP_BYTES, 64):
                prefetch(builder, builder.add(panel, _I64(AHEAD + line)))

            def number(row: int, offset: int) -> ir.Value:
                return spread(builder, at(builder, here, row * VNNI_ROW_BYTES + offset, _I32, 1), _INTS)

            high = [[everywhere(_INTS, 0)] * 2 for _ in range(num_rows)]
            low = [[number(row, 2 * GROUP)] * 2 for row in range(num_rows)]
            for word in range(WORDS):
                bits = [at(builder, panel, word * PANEL * 4 + part * LANES * 4, _INTS) for part in range(2)]
                for parity in range(2):
                    small = [builder.and_(builder.lshr(value, everywhere(_INTS, 4)) if parity else value, nibbles) for value in bits]
                    for row in range(num_rows):
                        first, second = (number(row, word * 2 * NIBBLES + parity * NIBBLES + 4 * digit) for digit in range(2))
                        for part in range(2):
                            high[row][part] = _add_products(builder, high[row][part], small[part], first)
                            low[row][part] = _add_products(builder, low[row][part], small[part], second)
            both = at(builder, panel, WORDS * PANEL * 4, _INTS)
            halves = builder.shl(both, everywhere(_INTS, 16)), builder.and_(both, everywhere(_INTS, 0xFFFF0000))
            for row in range(num_rows):
                for part in range(2):
                    whole = builder.add(builder.shl(high[row][part], everywhere(_INTS, 8)), low[row][part])
                    scale, total = builder.bitcast(halves[part], _FLOATS), totals[row][part]
                    builder.store(math(builder, "fma", builder.sitofp(whole, _FLOATS), scale, builder.load(total)), total)
        for row in range(num_rows):
            for part in range(2):
                put(builder, builder.load(totals[row][part]), sums_at, (row * PANEL + part * LANES) * 4)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, rows), code


@intrinsic
def _finish_row(_context, sums, scale, bias, out):  # type: ignore[no-untyped-def]
    """out bfloat16 [PANEL] = sums * scale + bias, float32 [PANEL] both."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums_at, number, bias_at, out_at = arguments
        scales = spread(builder, number, _FLOATS)
        for part in range(2):
            place = part * LANES * 4
            value = math(builder, "fma", at(builder, sums_at, place, _FLOATS), scales, at(builder, bias_at, place, _FLOATS))
            write(builder, value, out_at, part * LANES * 2, True)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.float32, types.int64, types.int64), code


def product(height: int) -> Source:
    """out = x @ weights.T + bias for blocks of `height` rows; x, bias and out bfloat16. Threads share panels as in linear.py."""
    added_bytes = 4 * PANEL
    panel, group, group_bytes, row_bytes = PANEL, GROUP, GROUP_BYTES, VNNI_ROW_BYTES

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        rows, inputs, padded, outputs, threads, me = a[ROWS], a[INPUTS], a[PADDED], a[OUTPUTS], a[THREADS], thread_number()
        groups, blocks = padded // group, (rows + height - 1) // height
        out = carray(pointer(a[OUT]), (rows * outputs,), np.uint16)
        bias = carray(pointer(a[BIAS]), (outputs,), np.uint16)
        has_bias = a[BIAS] != 0
        base = (a[SCRATCH] + 63) // 64 * 64
        sums_at = base + me * height * panel * 4
        digits_at = base + threads * height * panel * 4
        first, end = blocks * me // threads, blocks * (me + 1) // threads
        if a[ALONE]:
            digits_at += me * blocks * height * (groups * row_bytes + 4)
            first, end = 0, blocks
        scales_at = digits_at + blocks * height * groups * row_bytes
        _lay_out(a[X], digits_at, scales_at, first, end, rows, inputs, padded, height)
        if not a[ALONE]:
            barrier()
        sums = carray(pointer(sums_at), (height, panel), np.float32)
        scales = carray(pointer(scales_at), (blocks * height,), np.float32)
        added_at = zeros_on_stack(added_bytes)
        added = carray(pointer(added_at), (panel,), np.float32)
        panels, portion = (outputs + panel - 1) // panel, a[PORTION]
        first = fetch_add(a[NEXT], portion)
        while first < panels:
            for p in range(first, min(first + portion, panels)):
                width = min(panel, outputs - p * panel)
                if has_bias:
                    for j in range(width):
                        added[j] = widen(bias[p * panel + j])
                for block in range(blocks):
                    here = digits_at + block * groups * height * row_bytes
                    _multiply_panel(here, a[WEIGHTS] + p * groups * group_bytes, groups, sums_at, height)
                    for r in range(min(height, rows - block * height)):
                        row = block * height + r
                        target = row * outputs + p * panel
                        if width == panel:
                            _finish_row(sums_at + r * panel * 4, scales[row], added_at, a[OUT] + target * 2)
                        else:
                            for j in range(width):
                                out[target + j] = narrow(sums[r, j] * scales[row] + added[j])
            first = fetch_add(a[NEXT], portion)

    return run
