"""Matrix products on tiles.

Weights, bfloat16 or int8, lie in panels of PANEL outputs, each a run of [64 bytes of inputs: 2 tiles of 16 outputs], so that a panel is
read from its first byte to its last; the step's rows are laid out as tiles before (tile_rows.py). Two units multiply them: AMX
(tiles.py), for which the layout is made, and the dot products of 512-bit vectors (dots.py), which find a row of a
tile of weights in a vector and a row's pair of inputs in an int32. A thread multiplies a panel with one or two tiles of rows at a time:
on AMX two blocks of 16 rows of bfloat16; with int8 the two digits of one block's whole numbers. On AMX, where a panel is multiplied
faster than its memory comes, it asks for that of what follows meanwhile. By dots a panel is read several times where there are more than
8 rows, from memory the first time only, and each time asks for its share of what follows, so that memory and arithmetic do not take
turns. With many rows, inputs are taken in chunks, each for all rows, so that operands stay in the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu import dots as cpu_dots
from kernels_cpu import tiles as cpu_tiles
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import Source, barrier, kernel, pointer, thread_number, widen, zeros_on_stack
from kernels_cpu.tile_layout import (
    ALONE,
    BIAS,
    BYTES,
    COLUMNS,
    CONFIGURATION,
    COUNTERS,
    DEPTH,
    INPUTS,
    NUM_ARGUMENTS,
    OUT,
    OUTPUTS,
    PANEL,
    ROW_BYTES,
    ROWS,
    ROWS_INFO,
    SCALES,
    SCRATCH,
    THREADS,
    TOGETHER,
    WEIGHTS,
    X,
)
from kernels_cpu.tile_rows import lay_out, lay_out_digits
from kernels_cpu.tiles import configure, release
from kernels_cpu.vectors import at, everywhere, math, prefetch, put, silu_times, spread, swapped, write

# Steps of DEPTH inputs that are multiplied with all rows before the next ones are. By dots they stay in the first cache.
CHUNK, CHUNK_BY_DOTS = 32, 16
AHEAD = 32 * 1024  # bytes that AMX asks for ahead, where a panel is read once
# Rows that are multiplied by dots together, as many as leave their sums in registers; with int8 these are two digits' each.
BY_DOTS, BY_DOTS_INT8 = (8, 4, 2, 1), (4, 2, 1)
# With up to so many pairs of blocks of rows, a thread takes one panel at a time (measured: 64 rows take 0.85 of the time).
FEW_PAIRS = 4
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, COLUMNS), ir.VectorType(_I32, COLUMNS)
_LINE = _I64(64)


def _multiply_on_amx(
    builder: ir.IRBuilder, blocks: int, dot: Any, x: ir.Value, stride: ir.Value, weights: ir.Value, count: ir.Value, sums: ir.Value,
    fresh: ir.Value, ahead: ir.Value, pairs: ir.Value,
) -> None:  # fmt: skip
    places = [builder.add(sums, _I64(tile * BYTES)) for tile in range(2 * blocks)]
    with builder.if_else(fresh) as (then, otherwise):
        with then:
            for tile in range(2 * blocks):
                cpu_tiles.clear(builder, tile)
        with otherwise:
            for tile, place in enumerate(places):
                cpu_tiles.load(builder, tile, place, _LINE)
    wanted = cgutils.alloca_once(builder, _I64)
    builder.store(ahead, wanted)
    with cgutils.for_range(builder, count) as loop:
        x_here = builder.add(x, builder.mul(loop.index, _I64(BYTES)))
        weights_here = builder.add(weights, builder.mul(loop.index, _I64(2 * BYTES)))
        _ask(builder, wanted, pairs)
        for part in range(2):
            cpu_tiles.load(builder, 4 + part, builder.add(weights_here, _I64(part * BYTES)), _LINE)
        for block in range(blocks):
            cpu_tiles.load(builder, 6 + block, builder.add(x_here, builder.mul(stride, _I64(block))), _LINE)
            for part in range(2):
                dot(builder, 2 * block + part, 6 + block, 4 + part)
    for tile, place in enumerate(places):
        cpu_tiles.store(builder, tile, place, _LINE)


def _multiply_by_dots(
    builder: ir.IRBuilder, int8: bool, x: ir.Value, stride: ir.Value, weights: ir.Value, count: ir.Value, sums: ir.Value, fresh: ir.Value,
    rows: ir.Value, ahead: ir.Value, ahead_step: ir.Value,
) -> None:  # fmt: skip
    """Some rows at a time, each of which asks for as much of the memory that comes after.

    Where all are done at once, nothing is asked for: the weights are one run, which the CPU reads ahead by itself (AMD Zen 4: 48 GB/s,
    with asking 39). Where they are not, the CPU would read ahead while the first rows are done only. So few rows take two turns, too.
    """
    tiles, heights = (2, BY_DOTS_INT8) if int8 else (1, BY_DOTS)

    def in_turns(heights: tuple[int, ...]) -> None:
        with cgutils.for_range_slice(builder, _I64(0), rows, _I64(heights[0])) as (first, _):
            offset = builder.mul(first, _LINE)
            x_here, sums_here = builder.add(x, offset), builder.add(sums, offset)
            passed = builder.mul(builder.sdiv(first, _I64(heights[0])), builder.mul(count, _I64(COLUMNS)))
            ahead_here = builder.add(ahead, builder.mul(passed, ahead_step))

            def some(height: int) -> None:
                rows_of = []
                for tile in range(tiles):
                    tile_at = builder.add(x_here, builder.mul(stride, _I64(tile)))
                    for row in range(0, height * ROW_BYTES, ROW_BYTES):
                        rows_of.append((builder.add(tile_at, _I64(row)), tile * 2 * BYTES + row))

                def sums_of(**asking: ir.Value) -> None:
                    cpu_dots.multiply_tiles(
                        builder, rows_of, 2, BYTES, weights, 2 * BYTES, count, sums_here, fresh, int8,
                        part_bytes=ROW_BYTES, group_bytes=2 * ROW_BYTES, **asking,
                    )  # fmt: skip

                with builder.if_else(builder.icmp_signed(">", ahead_step, _I64(0))) as (asking, otherwise):
                    with asking:
                        sums_of(ahead=ahead_here, ahead_step=ahead_step)
                    with otherwise:
                        sums_of()

            _choose(builder, heights, builder.sub(rows, first), some)

    with builder.if_else(builder.icmp_signed(">", rows, _I64(heights[0]))) as (many, few):
        with many:
            in_turns(heights)
        with few:
            in_turns(heights[1:])


def _ask(builder: ir.IRBuilder, wanted: ir.Value, pairs: ir.Value) -> None:
    """Ask for `pairs` times two lines of memory from the address in `wanted` on, which then lies behind them."""
    with cgutils.for_range(builder, pairs):
        line = builder.load(wanted)
        for part in range(2):
            prefetch(builder, builder.add(line, _I64(part * 64)))
        builder.store(builder.add(line, _I64(128)), wanted)


@intrinsic(prefer_literal=True)
def multiply(  # type: ignore[no-untyped-def]
    _context, x, x_stride, weights, count, sums, fresh, ahead, asked, rows, int8, dots
):  # fmt: skip
    """sums [tiles of rows, 2, 16 rows, 16 outputs] += x [tiles of rows, count tiles] . weights [count, 2 tiles]; from zero if `fresh`.

    int8 and int32 sums, or bfloat16 and float32 sums. Up to `rows` rows are wanted: on AMX up to 32 of bfloat16, two tiles, else up to 16,
    with int8 two tiles, their digits. x_stride: bytes from a tile of rows to the next. Memory is asked for from `ahead` on, on AMX `asked`
    times two lines each step; by dots, for each 4 bytes of inputs of a row, what lies `asked` bytes further (0: none is).
    """
    if not (isinstance(dots, types.IntegerLiteral) and isinstance(int8, types.IntegerLiteral)):
        return None
    few_bits, by_dots = bool(int8.literal_value), bool(dots.literal_value)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        x_at, stride, weights_at, number, sums_at, is_fresh, ahead_at, num_asked, num_rows = arguments[:9]
        fresh_bit = builder.icmp_unsigned("!=", is_fresh, _I64(0))
        if not by_dots:
            dot = cpu_tiles.dot_int8 if few_bits else cpu_tiles.dot
            rest = (dot, x_at, stride, weights_at, number, sums_at, fresh_bit, ahead_at, num_asked)
            if few_bits:
                _multiply_on_amx(builder, 2, *rest)
                return ir.Constant(_I64, 0)
            with builder.if_else(builder.icmp_signed(">", num_rows, _I64(COLUMNS))) as (two, one):
                with two:
                    _multiply_on_amx(builder, 2, *rest)
                with one:
                    _multiply_on_amx(builder, 1, *rest)
            return ir.Constant(_I64, 0)
        _multiply_by_dots(builder, few_bits, x_at, stride, weights_at, number, sums_at, fresh_bit, num_rows, ahead_at, num_asked)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, whole, whole, whole, int8, dots), code


def _choose(builder: ir.IRBuilder, heights: tuple[int, ...], wanted: ir.Value, emit: Any) -> None:
    """Code for the least of `heights`, largest first, that holds `wanted`; for the largest if none does."""
    if len(heights) == 1:
        emit(heights[0])
        return
    with builder.if_else(builder.icmp_signed(">", wanted, _I64(heights[1]))) as (large, small):
        with large:
            emit(heights[0])
        with small:
            _choose(builder, heights[1:], wanted, emit)


@intrinsic
def finish(_context, sums, bias, out, stride, rows):  # type: ignore[no-untyped-def]
    """out bfloat16 [rows, 32], rows `stride` bytes apart, = sums [2, 16, 16] + bias float32 [32]; to nearest even, a NaN stays one."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums_at, bias_at, out_at, step, number = arguments
        added = [at(builder, bias_at, part * 64, _FLOATS) for part in range(2)]
        with cgutils.for_range(builder, number) as loop:
            row = builder.mul(loop.index, _LINE)
            for part in range(2):
                value = builder.fadd(at(builder, builder.add(sums_at, row), part * BYTES, _FLOATS), added[part])
                write(builder, value, builder.add(out_at, builder.mul(loop.index, step)), part * 32, True)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), code


@intrinsic
def _finish_gated(_context, sums, bias, out, stride, rows):  # type: ignore[no-untyped-def]
    """out bfloat16 [rows, 16] = silu(gate) * up, where sums + bias are [gate and up, 16, 16]; the rest as in finish."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums_at, bias_at, out_at, step, number = arguments
        added = [at(builder, bias_at, part * 64, _FLOATS) for part in range(2)]
        with cgutils.for_range(builder, number) as loop:
            row = builder.add(sums_at, builder.mul(loop.index, _LINE))
            gate, up = (builder.fadd(at(builder, row, part * BYTES, _FLOATS), added[part]) for part in range(2))
            write(builder, silu_times(builder, gate, up), builder.add(out_at, builder.mul(loop.index, step)), 0, True)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), code


@intrinsic(prefer_literal=True)
def _finish_digits(  # type: ignore[no-untyped-def]
    _context, sums, rows_scales, rows_rests, scales, more_scales, bias, out, stride, rows, gated, dots
):  # fmt: skip
    """As finish or, if gated, _finish_gated, of int32 sums [2 digits, 2, 16, 16].

    A sum is worth (first digit * 256 + second) * the row's scale * the output's; those of the second 16 outputs begin at more_scales.
    dots: before, a row's int32 [2] at rows_rests, which begin with that of the sums' first row, are added to its digits' sums.
    """
    if not (isinstance(gated, types.IntegerLiteral) and isinstance(dots, types.IntegerLiteral)):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums_at, rows_scales_at, rests_at, *scales_at, bias_at, out_at, step, number, _, _ = arguments
        factors = [at(builder, place, 0, _FLOATS) for place in scales_at]
        added = [at(builder, bias_at, part * 64, _FLOATS) for part in range(2)]
        with cgutils.for_range(builder, number) as loop:
            row = builder.add(sums_at, builder.mul(loop.index, _LINE))
            place = builder.add(out_at, builder.mul(loop.index, step))
            row_scale = spread(builder, at(builder, rows_scales_at, builder.mul(loop.index, _I64(4)), _F32), _FLOATS)
            values = []
            rest_at = builder.add(rests_at, builder.mul(loop.index, _I64(8)))
            rests = [spread(builder, at(builder, rest_at, digit * 4, _I32), _INTS) for digit in range(2)] if dots.literal_value else []
            for part in range(2):
                whole = [at(builder, row, (2 * digit + part) * BYTES, _INTS) for digit in range(2)]
                if rests:
                    whole = [builder.add(total, rest) for total, rest in zip(whole, rests, strict=True)]
                high, low = (builder.sitofp(total, _FLOATS) for total in whole)
                total = math(builder, "fma", high, everywhere(_FLOATS, 256.0), low)
                values.append(math(builder, "fma", total, builder.fmul(row_scale, factors[part]), added[part]))
            if gated.literal_value:
                write(builder, silu_times(builder, *values), place, 0, True)
            else:
                for part in range(2):
                    write(builder, values[part], place, part * 32, True)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, whole, whole, whole, gated, dots), code


@intrinsic(prefer_literal=True)
def _turn(_context, plain, stride, tile, flip, line):  # type: ignore[no-untyped-def]
    """A tile of weights [16 times 4 bytes of inputs, 16 outputs, 4 bytes] from 16 outputs' 64 bytes of inputs, `stride` bytes apart.

    All bits of an int32 that `flip` has are turned over. line: bytes from a row of the tile to the next.
    """
    if not (isinstance(flip, types.IntegerLiteral) and isinstance(line, types.IntegerLiteral)):
        return None
    bits, apart = everywhere(_INTS, flip.literal_value), line.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        plain_at, step, tile_at, _, _ = arguments
        rows = [at(builder, builder.add(plain_at, builder.mul(step, _I64(row))), 0, _INTS, 2) for row in range(COLUMNS)]
        for row, value in enumerate(swapped(builder, rows)):
            put(builder, builder.xor(value, bits), tile_at, row * apart)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, flip, line), code


def product(int8: bool, gated: bool, dots: bool) -> Source:
    """out = x @ weights.T + bias, x, bias and out bfloat16, weights int8 or bfloat16; if gated, silu of its first half times its second.

    By AMX, or by dots. Each thread has panels of its own, and takes those that others have left when it is done, so that a thread that
    another process holds up
    does not hold up the rest.
    """
    panel, tile_bytes, most_panels, few_pairs, far = PANEL, BYTES, TOGETHER, FEW_PAIRS, AHEAD
    chunk_steps, most_rows = (CHUNK_BY_DOTS, (BY_DOTS_INT8 if int8 else BY_DOTS)[0]) if dots else (CHUNK, 16 if int8 else 32)
    added_bytes = 4 * PANEL
    depth, digits, few_bits = 2 * DEPTH if int8 else DEPTH, 2 if int8 else 1, int(int8)
    is_gated, by_dots, info_bytes = int(gated), int(dots), ROWS_INFO * ROW_BYTES
    # Tiles of rows that are multiplied together.
    taken = 1 if dots and not int8 else 2

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        rows, inputs, outputs, threads, me = a[ROWS], a[INPUTS], a[OUTPUTS], a[THREADS], thread_number()
        steps, blocks, panels = (inputs + depth - 1) // depth, (rows + 15) // 16, (outputs + panel - 1) // panel
        bias = carray(pointer(a[BIAS]), (outputs,), np.uint16)
        has_bias = a[BIAS] != 0
        half = outputs // 2
        out = carray(pointer(a[OUT]), (rows * outputs,), np.uint16)
        tile_rows = blocks * digits
        pairs = (tile_rows + taken - 1) // taken
        at_a_time = most_rows // 2 if by_dots and rows <= most_rows else most_rows
        passes = (rows + at_a_time - 1) // at_a_time
        at_once = (steps + steps // chunk_steps) // (steps // chunk_steps + 1) if passes > 1 else steps
        # The results of a panel that outputs do not fill go before the sums.
        sums_bytes = (1 + most_panels * (tile_rows + 1) * 2) * tile_bytes
        base = (a[SCRATCH] + 63) // 64 * 64
        sums_at = base + me * sums_bytes + tile_bytes
        x_at = base + threads * sums_bytes
        first, end = rows * me // threads, rows * (me + 1) // threads
        if a[ALONE]:
            x_at += me * (tile_rows * steps * tile_bytes + blocks * info_bytes)
            first, end = 0, rows
        rows_scales_at = x_at + tile_rows * steps * tile_bytes
        if int8:
            lay_out_digits(a[X], x_at, rows_scales_at, first, end, inputs, steps, blocks, at_once, by_dots)
        else:
            lay_out(a[X], x_at, first, end, inputs, steps, blocks, at_once)
        if not a[ALONE]:
            barrier()
        configure(a[CONFIGURATION], by_dots)
        added_at = zeros_on_stack(added_bytes)
        added = carray(pointer(added_at), (panel,), np.float32)
        # A step's share of the two tiles that follow: pairs of lines, by dots bytes for each of its 16 times 4 bytes of inputs.
        asked = (16 + passes - 1) // passes
        if by_dots:
            asked = (2 * tile_bytes // 16 + passes - 1) // passes if passes > 1 else 0
        together = 1 if pairs <= few_pairs else max(1, min(most_panels, panels // (2 * threads)))
        for turn in range(threads):
            owner = (me + turn) % threads
            begin, end = panels * owner // threads, panels * (owner + 1) // threads
            first = begin + fetch_add(a[COUNTERS] + owner * 64, together)
            while first < end:
                last = min(first + together, end)
                for step in range(0, steps, at_once):
                    count = min(at_once, steps - step)
                    distance = far if passes == 1 else count * 2 * tile_bytes
                    for p in range(first, last):
                        there = a[WEIGHTS] + (p * steps + step) * 2 * tile_bytes
                        following, asked_of_pair = there + distance, count * asked * 128
                        if by_dots:
                            following, asked_of_pair = there + steps * 2 * tile_bytes, count * asked * 16 * (16 // most_rows)
                            if p + 1 == last:
                                following = a[WEIGHTS] + (first * steps + step + count) * 2 * tile_bytes
                        width = min(panel, outputs - p * panel)
                        output = p * 16 if gated else p * panel
                        further = half if gated else 16
                        if has_bias:
                            for j in range(width):
                                added[j] = widen(bias[output + j % 16 + j // 16 * further])
                        scales_at = a[SCALES] + output * 4
                        for pair in range(pairs):
                            here = x_at + (step * tile_rows + taken * pair * count) * tile_bytes
                            ahead = following + pair * asked_of_pair
                            slot = ((p - first) * pairs + pair) * taken if at_once < steps else 0
                            into = sums_at + slot * 2 * tile_bytes
                            fresh = np.int64(step == 0)
                            wanted = rows - taken * pair // digits * 16
                            if by_dots:
                                wanted = min(wanted, 16)
                            multiply(here, count * tile_bytes, there, count, into, fresh, ahead, asked, wanted, few_bits, by_dots)
                            if step + count < steps:
                                continue
                            for block in range(taken * pair // digits, min(taken * (pair + 1) // digits, blocks)):
                                row = block * 16
                                height = min(16, rows - row)
                                stride = (half if gated else outputs) * 2
                                place = a[OUT] + row * stride + output * 2
                                if width < panel:
                                    place = sums_at - tile_bytes
                                    stride = panel * 2
                                sums = into + (block * digits - taken * pair) * 2 * tile_bytes
                                if int8:
                                    scale_at = rows_scales_at + row * 4
                                    more = scales_at + further * 4
                                    rests = rows_scales_at + (blocks * 16 + row * 2) * 4
                                    where = added_at
                                    _finish_digits(sums, scale_at, rests, scales_at, more, where, place, stride, height, is_gated, by_dots)
                                elif gated:
                                    _finish_gated(sums, added_at, place, stride, height)
                                else:
                                    finish(sums, added_at, place, stride, height)
                                if width < panel:
                                    whole = carray(pointer(place), (16, panel), np.uint16)
                                    for r in range(height):
                                        for j in range(width):
                                            out[(row + r) * outputs + output + j] = whole[r, j]
                first = begin + fetch_add(a[COUNTERS] + owner * 64, together)
        release(by_dots)

    return run


def packer(int8: bool, gated: bool, dots: bool) -> Source:
    """weights, bfloat16 or int8 [outputs, inputs], into panels. Arguments as above: X are the weights, OUT the panels.

    If gated, a panel has 16 outputs of the first half and the same of the second; their number is a multiple of 32. int8 for dots becomes
    unsigned by an offset, which is the same as turning its highest bit over.
    """
    panel, tile_bytes = PANEL, BYTES
    dtype, number, depth = (np.int8, 1, 2 * DEPTH) if int8 else (np.uint16, 2, DEPTH)
    group = 4 // number
    high_bit = np.int8(-128) if int8 and dots else dtype(0)
    flip = 0x80808080 if int8 and dots else 0
    # By dots the two tiles of a step are read row by row in turns: as one run of memory they come fastest.
    line_bytes, part_bytes = (2 * ROW_BYTES, ROW_BYTES) if dots else (ROW_BYTES, tile_bytes)
    line, apart = line_bytes // number, part_bytes // number

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        inputs, outputs, threads, me = a[INPUTS], a[OUTPUTS], a[THREADS], thread_number()
        steps, panels = (inputs + depth - 1) // depth, (outputs + panel - 1) // panel
        plain = carray(pointer(a[X]), (outputs, inputs), dtype)
        for p in range(panels * me // threads, panels * (me + 1) // threads):
            for part in range(2):
                row = p * 16 + part * (outputs // 2) if gated else p * panel + part * 16
                for step in range(steps):
                    tiles_at = a[OUT] + (p * steps + step) * 2 * tile_bytes
                    if row + 16 <= outputs and (step + 1) * depth <= inputs:
                        place = a[X] + (row * inputs + step * depth) * number
                        _turn(place, inputs * number, tiles_at + part * part_bytes, flip, line_bytes)
                    else:
                        tiles = carray(pointer(tiles_at), (2 * tile_bytes // number,), dtype)
                        for k in range(depth):
                            for j in range(16):
                                known = row + j < outputs and step * depth + k < inputs
                                value = plain[row + j, step * depth + k] if known else dtype(0)
                                tiles[part * apart + k // group * line + j * group + k % group] = value ^ high_bit

    return run
