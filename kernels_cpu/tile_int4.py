"""Products with int4 weights on AMX tiles, for bfloat16 activations.

The weights are the panels of linear_layout.py, and so are the arguments. A chunk of a panel is widened to
bfloat16 tiles once and multiplied with all rows.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from kernels_cpu.linear_layout import (
    ALONE,
    BIAS,
    CONFIGURATION,
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
    TILE_CHUNK,
    WEIGHTS,
    WORDS,
    X,
)
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import Source, barrier, kernel, narrow, pointer, thread_number, widen, zeros_on_stack
from kernels_cpu.tile_layout import BYTES, COLUMNS
from kernels_cpu.tile_linear import finish, multiply
from kernels_cpu.tile_rows import lay_out
from kernels_cpu.tiles import configure, release
from kernels_cpu.vectors import at, everywhere, math, prefetch, put

# Bytes that are asked for ahead of what is widened.
AHEAD = 16 * 1024
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, COLUMNS), ir.VectorType(_I32, COLUMNS)


def _pair(builder: ir.IRBuilder, even: ir.Value, odd: ir.Value) -> ir.Value:
    """Two vectors of finite float32 as one of pairs of bfloat16, rounded to nearest even."""
    rounded = []
    for value in (even, odd):
        bits = builder.bitcast(value, _INTS)
        last = builder.and_(builder.lshr(bits, everywhere(_INTS, 16)), everywhere(_INTS, 1))
        rounded.append(builder.add(builder.add(bits, last), everywhere(_INTS, 0x7FFF)))
    return builder.or_(builder.lshr(rounded[0], everywhere(_INTS, 16)), builder.and_(rounded[1], everywhere(_INTS, 0xFFFF0000)))


@intrinsic
def _widen_step(_context, source, tiles):  # type: ignore[no-untyped-def]
    """GROUP inputs of a panel as two tiles [16 pairs of inputs, 16 outputs, 2]."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        source_at, tiles_at = arguments
        for line in range(0, GROUP_BYTES, 64):
            prefetch(builder, builder.add(source_at, _I64(AHEAD + line)))
        both = at(builder, source_at, WORDS * PANEL * 4, _INTS)
        halves = builder.shl(both, everywhere(_INTS, 16)), builder.and_(both, everywhere(_INTS, 0xFFFF0000))
        for part in range(2):
            scales = builder.bitcast(halves[part], _FLOATS)
            lowest = builder.fmul(scales, everywhere(_FLOATS, -8.0))
            for word in range(WORDS):
                bits = at(builder, source_at, word * PANEL * 4 + part * COLUMNS * 4, _INTS)
                numbers = []
                for nibble in range(NIBBLES):
                    four = builder.and_(builder.lshr(bits, everywhere(_INTS, 4 * nibble)), everywhere(_INTS, 15))
                    numbers.append(math(builder, "fma", builder.sitofp(four, _FLOATS), scales, lowest))
                for pair in range(NIBBLES // 2):
                    value = _pair(builder, numbers[2 * pair], numbers[2 * pair + 1])
                    put(builder, value, tiles_at, part * BYTES + (word * NIBBLES // 2 + pair) * 64)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64), code


def product() -> Source:
    """out = x @ weights.T + bias; x, bias and out bfloat16, weights int4. Threads share panels as in linear.product."""
    added_bytes = 4 * PANEL
    panel, group, tile_bytes, chunk_steps, source_bytes = PANEL, GROUP, BYTES, TILE_CHUNK, GROUP_BYTES

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        rows, inputs, outputs, threads, me = a[ROWS], a[INPUTS], a[OUTPUTS], a[THREADS], thread_number()
        steps, blocks, panels = a[PADDED] // group, (rows + 15) // 16, (outputs + panel - 1) // panel
        out = carray(pointer(a[OUT]), (rows * outputs,), np.uint16)
        bias = carray(pointer(a[BIAS]), (outputs,), np.uint16)
        has_bias = a[BIAS] != 0
        pairs = (blocks + 1) // 2
        at_once = min(chunk_steps, steps)
        base = (a[SCRATCH] + 63) // 64 * 64
        sums_at = base + me * (blocks + chunk_steps) * 2 * tile_bytes
        tiles_at = sums_at + blocks * 2 * tile_bytes
        x_at = base + threads * (blocks + chunk_steps) * 2 * tile_bytes
        if a[ALONE]:
            x_at += me * blocks * steps * tile_bytes
            lay_out(a[X], x_at, 0, rows, inputs, steps, blocks, at_once)
        else:
            lay_out(a[X], x_at, rows * me // threads, rows * (me + 1) // threads, inputs, steps, blocks, at_once)
            barrier()
        configure(a[CONFIGURATION], 0)
        sums = carray(pointer(sums_at), (blocks, 2, 16, 16), np.float32)
        added_at = zeros_on_stack(added_bytes)
        added = carray(pointer(added_at), (panel,), np.float32)
        portion = a[PORTION]
        first = fetch_add(a[NEXT], portion)
        while first < panels:
            for p in range(first, min(first + portion, panels)):
                width = min(panel, outputs - p * panel)
                if has_bias:
                    for j in range(width):
                        added[j] = widen(bias[p * panel + j])
                for step in range(0, steps, at_once):
                    count = min(at_once, steps - step)
                    source = a[WEIGHTS] + (p * steps + step) * source_bytes
                    for s in range(count):
                        _widen_step(source + s * source_bytes, tiles_at + s * 2 * tile_bytes)
                    for pair in range(pairs):
                        here = x_at + (step * blocks + 2 * pair * count) * tile_bytes
                        into = sums_at + pair * 4 * tile_bytes
                        wanted = rows - pair * 32
                        multiply(here, count * tile_bytes, tiles_at, count, into, np.int64(step == 0), tiles_at, 0, wanted, 0, 0)
                for block in range(blocks):
                    height = min(16, rows - block * 16)
                    from_sums = sums_at + block * 2 * tile_bytes
                    if width == panel:
                        finish(from_sums, added_at, a[OUT] + (block * 16 * outputs + p * panel) * 2, outputs * 2, height)
                    else:
                        for r in range(height):
                            for j in range(width):
                                value = sums[block, j // 16, r, j % 16] + added[j]
                                out[(block * 16 + r) * outputs + p * panel + j] = narrow(value)
            first = fetch_add(a[NEXT], portion)
        release(0)

    return run
