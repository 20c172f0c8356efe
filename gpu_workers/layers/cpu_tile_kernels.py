"""The numba source of matrix products on AMX tiles (device/cpu_tiles.py), for bfloat16. Imported only by the thread that compiles it.

Weights lie in panels of PANEL outputs, each a run of [32 inputs: 2 tiles of 16 outputs], so that a panel is read from its first byte to its
last; the step's rows are laid out as tiles before. A thread multiplies a panel with two blocks of 16 rows at a time, and asks for the
memory of what comes next meanwhile. With many rows, inputs are taken in chunks, each for all rows, so that operands stay in the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gpu_workers.device import cpu_tiles
from gpu_workers.device.cpu_native import barrier, narrow, pointer, signature, thread_number, widen
from gpu_workers.device.cpu_tiles import BYTES, COLUMNS, DEPTH, configure, release
from gpu_workers.device.cpu_vectors import at, put, silu_times, swapped, write
from gpu_workers.layers.cpu_linear_vectors import fetch_add

PANEL = 2 * COLUMNS
# Places in the argument array. COUNTERS: one int64 per thread, 64 bytes apart: how many of its panels are taken.
(X, WEIGHTS, OUT, BIAS, SCRATCH, ROWS, INPUTS, OUTPUTS, THREADS, COUNTERS, ALONE, CONFIGURATION) = range(12)
NUM_ARGUMENTS = 16
# Steps of DEPTH inputs that are multiplied with all rows before the next ones are; bytes that are asked for ahead.
CHUNK, AHEAD = 32, 32 * 1024
TOGETHER = 8
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, COLUMNS), ir.VectorType(_I32, COLUMNS)
_LINE = _I64(64)


def packed_bytes(outputs: int, inputs: int) -> int:
    """Size of a weight's panels."""
    return -(-outputs // PANEL) * -(-inputs // DEPTH) * 2 * BYTES


def scratch_bytes(rows: int, inputs: int, threads: int, alone: bool) -> int:
    """The rows as tiles, once or for each thread, and each thread's sums."""
    blocks = -(-rows // COLUMNS)
    laid_out = blocks * -(-inputs // DEPTH) * BYTES * (threads if alone else 1)
    return laid_out + threads * _sums_bytes(blocks) + 64


def _sums_bytes(blocks: int) -> int:
    return TOGETHER * (blocks + 1) * 2 * BYTES


@intrinsic(prefer_literal=True)
def multiply_blocks(_context, x, x_stride, weights, count, sums, fresh, ahead, pairs, blocks):  # type: ignore[no-untyped-def]
    """sums [blocks, 2, 16 rows, 16 outputs] += x [blocks, count tiles] . weights [count, 2 tiles]; from zero if `fresh`.

    x_stride: bytes from a block to the next. Each step asks for `pairs` times two lines of memory, one after the other from `ahead` on.
    """
    if not isinstance(blocks, types.IntegerLiteral):
        return None
    num_blocks = blocks.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        x_at, stride, weights_at, number, sums_at, is_fresh, ahead_at, num_pairs = arguments[:8]
        byte = ir.IntType(8).as_pointer()
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]), "llvm.prefetch.p0"
        )
        places = [builder.add(sums_at, _I64(tile * BYTES)) for tile in range(2 * num_blocks)]
        with builder.if_else(builder.icmp_unsigned("!=", is_fresh, _I64(0))) as (then, otherwise):
            with then:
                for tile in range(2 * num_blocks):
                    cpu_tiles.clear(builder, tile)
            with otherwise:
                for tile, place in enumerate(places):
                    cpu_tiles.load(builder, tile, place, _LINE)
        wanted = cgutils.alloca_once_value(builder, ahead_at)
        with cgutils.for_range(builder, number) as loop:
            x_here = builder.add(x_at, builder.mul(loop.index, _I64(BYTES)))
            weights_here = builder.add(weights_at, builder.mul(loop.index, _I64(2 * BYTES)))
            with cgutils.for_range(builder, num_pairs):
                line = builder.load(wanted)
                for part in range(2):
                    place = builder.inttoptr(builder.add(line, _I64(part * 64)), byte)
                    builder.call(prefetch, [place, _I32(0), _I32(2), _I32(1)])
                builder.store(builder.add(line, _I64(128)), wanted)
            for part in range(2):
                cpu_tiles.load(builder, 4 + part, builder.add(weights_here, _I64(part * BYTES)), _LINE)
            for block in range(num_blocks):
                cpu_tiles.load(builder, 6 + block, builder.add(x_here, builder.mul(stride, _I64(block))), _LINE)
                for part in range(2):
                    cpu_tiles.dot(builder, 2 * block + part, 6 + block, 4 + part)
        for tile, place in enumerate(places):
            cpu_tiles.store(builder, tile, place, _LINE)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, whole, whole, blocks), code


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


@intrinsic
def _turn(_context, plain, stride, tile):  # type: ignore[no-untyped-def]
    """A tile of weights [16 pairs of inputs, 16 outputs, 2] from 16 outputs' 32 inputs, `stride` bytes apart."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        plain_at, step, tile_at = arguments
        rows = [at(builder, builder.add(plain_at, builder.mul(step, _I64(row))), 0, _INTS, 2) for row in range(COLUMNS)]
        for row, value in enumerate(swapped(builder, rows)):
            put(builder, value, tile_at, row * 64)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64), code


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


def product(gated: bool, cache: bool) -> Any:
    """out = x @ weights.T + bias, all bfloat16; if gated, silu of its first half times its second.

    Each thread has panels of its own, and takes those that others have left when it is done, so that a thread that another process holds up
    does not hold up the rest.
    """
    depth, panel, chunk_steps, tile_bytes, most_panels, far = DEPTH, PANEL, CHUNK, BYTES, TOGETHER, AHEAD

    @cfunc(signature, nopython=True, cache=cache, error_model="numpy")
    def kernel(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        rows, inputs, outputs, threads, me = a[ROWS], a[INPUTS], a[OUTPUTS], a[THREADS], thread_number()
        steps, blocks, panels = (inputs + depth - 1) // depth, (rows + 15) // 16, (outputs + panel - 1) // panel
        bias = carray(pointer(a[BIAS]), (outputs,), np.uint16)
        has_bias = a[BIAS] != 0
        half = outputs // 2
        out = carray(pointer(a[OUT]), (rows * outputs,), np.uint16)
        pairs = (blocks + 1) // 2
        at_once = (steps + steps // chunk_steps) // (steps // chunk_steps + 1) if pairs > 1 else steps
        sums_bytes = most_panels * (blocks + 1) * 2 * tile_bytes
        base = (a[SCRATCH] + 63) // 64 * 64
        sums_at = base + me * sums_bytes
        x_at = base + threads * sums_bytes
        if a[ALONE]:
            x_at += me * blocks * steps * tile_bytes
        if a[ALONE]:
            lay_out(a[X], x_at, 0, rows, inputs, steps, blocks, at_once)
        else:
            lay_out(a[X], x_at, rows * me // threads, rows * (me + 1) // threads, inputs, steps, blocks, at_once)
            barrier()
        configure(a[CONFIGURATION])
        sums = carray(pointer(sums_at), (most_panels * (blocks + 1), 2, 16, 16), np.float32)
        added = np.zeros(panel, np.float32)
        lines = (16 + pairs - 1) // pairs
        together = 1 if pairs == 1 else max(1, min(most_panels, panels // (2 * threads)))
        for turn in range(threads):
            owner = (me + turn) % threads
            begin, end = panels * owner // threads, panels * (owner + 1) // threads
            first = begin + fetch_add(a[COUNTERS] + owner * 64, together)
            while first < end:
                last = min(first + together, end)
                for step in range(0, steps, at_once):
                    count = min(at_once, steps - step)
                    distance = far if pairs == 1 else count * 2 * tile_bytes
                    for p in range(first, last):
                        there = a[WEIGHTS] + (p * steps + step) * 2 * tile_bytes
                        width = min(panel, outputs - p * panel)
                        if has_bias:
                            for j in range(width):
                                added[j] = widen(bias[p * 16 + j % 16 + j // 16 * half] if gated else bias[p * panel + j])
                        for pair in range(pairs):
                            here = x_at + (step * blocks + 2 * pair * count) * tile_bytes
                            ahead = there + distance + pair * count * lines * 128
                            slot = ((p - first) * pairs + pair) * 2 if at_once < steps else 0
                            into = sums_at + slot * 2 * tile_bytes
                            if 2 * pair + 1 < blocks:
                                multiply_blocks(here, count * tile_bytes, there, count, into, np.int64(step == 0), ahead, lines, 2)
                            else:
                                multiply_blocks(here, count * tile_bytes, there, count, into, np.int64(step == 0), ahead, lines, 1)
                            if step + count < steps:
                                continue
                            for block in range(min(2, blocks - 2 * pair)):
                                row = (2 * pair + block) * 16
                                height = min(16, rows - row)
                                if gated:
                                    place = a[OUT] + (row * half + p * 16) * 2
                                    _finish_gated(into + block * 2 * tile_bytes, added.ctypes.data, place, half * 2, height)
                                elif width == panel:
                                    place = a[OUT] + (row * outputs + p * panel) * 2
                                    finish(into + block * 2 * tile_bytes, added.ctypes.data, place, outputs * 2, height)
                                else:
                                    for r in range(height):
                                        for j in range(width):
                                            value = sums[slot + block, j // 16, r, j % 16] + added[j]
                                            out[(row + r) * outputs + p * panel + j] = narrow(value)
                first = begin + fetch_add(a[COUNTERS] + owner * 64, together)
        release()

    return kernel


def packer(gated: bool, cache: bool) -> Any:
    """weights bfloat16 [outputs, inputs] into panels. Arguments as above: X are the weights, OUT the panels.

    If gated, a panel has 16 outputs of the first half and the same of the second; their number is a multiple of 32.
    """
    depth, panel, tile_bytes = DEPTH, PANEL, BYTES

    @cfunc(signature, nopython=True, cache=cache, error_model="numpy")
    def kernel(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        inputs, outputs, threads, me = a[INPUTS], a[OUTPUTS], a[THREADS], thread_number()
        steps, panels = (inputs + depth - 1) // depth, (outputs + panel - 1) // panel
        plain = carray(pointer(a[X]), (outputs, inputs), np.uint16)
        for p in range(panels * me // threads, panels * (me + 1) // threads):
            for part in range(2):
                row = p * 16 + part * (outputs // 2) if gated else p * panel + part * 16
                for step in range(steps):
                    tile_at = a[OUT] + ((p * steps + step) * 2 + part) * tile_bytes
                    if row + 16 <= outputs and (step + 1) * depth <= inputs:
                        _turn(a[X] + (row * inputs + step * depth) * 2, inputs * 2, tile_at)
                    else:
                        tile = carray(pointer(tile_at), (16, 16, 2), np.uint16)
                        for k in range(depth):
                            for j in range(16):
                                known = row + j < outputs and step * depth + k < inputs
                                tile[k // 2, j, k % 2] = plain[row + j, step * depth + k] if known else np.uint16(0)

    return kernel
