"""The inner loops of attention on tiles, written out as vector code: by AMX (tiles.py) or by dots (dots.py).

Scores are computed turned, a key a row and a query a column: keys are a tile as they lie in the cache, and the softmax over keys runs down
the rows with 16 queries side by side. Weights are rounded to bfloat16 in pairs of keys and turned back for the product with the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu import dots as cpu_dots
from kernels_cpu import tiles as cpu_tiles
from kernels_cpu.tile_layout import BYTES, COLUMNS, DEPTH
from kernels_cpu.vectors import at, everywhere, larger, math, prefetch, put, spread, swapped, write

LEAST = -1e30
ROWS = COLUMNS
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, COLUMNS), ir.VectorType(_I32, COLUMNS)
_LINE, _FALSE = _I64(64), ir.IntType(1)(0)
# Chains of maxima or sums that run side by side.
_CHAINS = 4
# Tiles of sums that stay in registers; two more hold the operands.
_SUMS = 4
# By dots: rows, and tiles beside one another, whose sums stay in registers.
_DOT_ROWS, _DOT_TILES = 8, 2


def exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e to the x for x <= 0, relative error below 4e-6, far below the bfloat16 it becomes; as native.exponential."""
    kind = x.type
    whole = ir.VectorType(_I32, kind.count)
    x = larger(builder, x, everywhere(kind, -87.0))
    octave = math(builder, "floor", math(builder, "fma", x, everywhere(kind, 1.44269504088896341), everywhere(kind, 0.5)))
    r = math(builder, "fma", octave, everywhere(kind, -0.693147180559945), x)
    p = everywhere(kind, 1.0 / 120.0)
    for factor in (1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        p = math(builder, "fma", p, r, everywhere(kind, factor))
    exponent = builder.shl(builder.add(builder.fptosi(octave, whole), everywhere(whole, 127)), everywhere(whole, 23))
    return builder.fmul(p, builder.bitcast(exponent, kind))


def _literals(*arguments: Any) -> bool:
    return all(isinstance(argument, types.IntegerLiteral) for argument in arguments)


def _narrowest(builder: ir.IRBuilder, used: ir.Value, emit: Callable[[int], None]) -> None:
    """Code for 16 lanes, and for 8 where so many hold all that is used: such vectors go through most CPUs at twice the rate."""
    with builder.if_else(builder.icmp_signed(">", used, _I64(COLUMNS // 2))) as (all_lanes, half):
        with all_lanes:
            emit(COLUMNS)
        with half:
            emit(COLUMNS // 2)


@intrinsic(prefer_literal=True)
def score_tile(_context, keys, queries, scores, used, ahead, steps, dots):  # type: ignore[no-untyped-def]
    """scores float32 [16 keys, 16 queries] = keys bfloat16 [16, 32 * steps] . queries, `steps` tiles of [16 pairs, 16 queries, 2].

    Queries from `used` on don't matter. Memory is asked for from `ahead` on, as much as the keys take.
    """
    if not _literals(steps, dots):
        return None
    depth, by_dots = steps.literal_value, bool(dots.literal_value)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        keys_at, queries_at, scores_at, wanted, ahead_at = arguments[:5]
        if by_dots:
            rows = [(builder.add(keys_at, _I64(row * depth * 64)), row * 64) for row in range(ROWS)]

            def some(lanes: int) -> None:
                cpu_dots.multiply_tiles(builder, rows, 1, 64, queries_at, BYTES, _I64(depth), scores_at, None, lanes=lanes, ahead=ahead_at)

            _narrowest(builder, wanted, some)
            return ir.Constant(_I64, 0)
        for line in range(0, depth * BYTES, 64):
            prefetch(builder, builder.add(ahead_at, _I64(line)))
        cpu_tiles.clear(builder, 0)
        for step in range(depth):
            cpu_tiles.load(builder, 1 + step % 2, builder.add(keys_at, _I64(step * 64)), _I64(depth * 64))
            cpu_tiles.load(builder, 3 + step % 2, builder.add(queries_at, _I64(step * BYTES)), _LINE)
            cpu_tiles.dot(builder, 0, 1 + step % 2, 3 + step % 2)
        cpu_tiles.store(builder, 0, scores_at, _LINE)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, steps, dots), code


@intrinsic
def soften(_context, scores, count, masked, state, pairs, scale, used):  # type: ignore[no-untyped-def]
    """One turn of a running softmax over `count` keys, a multiple of 4, of 16 queries side by side; those from `used` on don't matter.

    Addresses of float32 scores [count, 16]; of state, int32 and float32 [5, 16]: the first key each query may see and the one behind
    its last (looked at if `masked`), the largest scaled score so far, the sum of weights so far, and what earlier sums are now multiplied
    with (written); of pairs, bfloat16 [count / 2, 16 queries, 2], the new weights.
    """

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        scores_at, number, is_masked, state_at, pairs_at, factor, wanted = arguments
        masks = builder.icmp_unsigned("!=", is_masked, _I64(0))

        def turn(with_mask: bool, lanes: int) -> None:
            floats, ints = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
            low, high = (at(builder, state_at, place * 64, ints) for place in range(2))
            before, share = (at(builder, state_at, place * 64, floats) for place in range(2, 4))
            scales = spread(builder, factor, floats)

            def seen(index: ir.Value, value: ir.Value, otherwise: ir.Constant) -> ir.Value:
                if not with_mask:
                    return value
                key = spread(builder, builder.trunc(index, _I32), ints)
                inside = builder.and_(builder.icmp_signed(">=", key, low), builder.icmp_signed("<", key, high))
                return builder.select(inside, value, otherwise)

            most = [cgutils.alloca_once_value(builder, everywhere(floats, LEAST)) for _ in range(_CHAINS)]
            with cgutils.for_range_slice(builder, _I64(0), number, _I64(_CHAINS)) as (index, _):
                for chain, slot in enumerate(most):
                    key = builder.add(index, _I64(chain))
                    value = seen(key, at(builder, scores_at, builder.mul(key, _LINE), floats), everywhere(floats, LEAST))
                    builder.store(larger(builder, value, builder.load(slot)), slot)
            tops = [builder.load(slot) for slot in most]
            top = larger(builder, larger(builder, tops[0], tops[1]), larger(builder, tops[2], tops[3]))
            largest = larger(builder, builder.fmul(top, scales), before)
            totals = [cgutils.alloca_once_value(builder, everywhere(floats, 0.0)) for _ in range(_CHAINS)]
            away = builder.fneg(largest)
            with cgutils.for_range_slice(builder, _I64(0), number, _I64(_CHAINS)) as (index, _):
                weights = []
                for chain, slot in enumerate(totals):
                    key = builder.add(index, _I64(chain))
                    value = math(builder, "fma", at(builder, scores_at, builder.mul(key, _LINE), floats), scales, away)
                    weight = seen(key, exponential(builder, value), everywhere(floats, 0.0))
                    builder.store(builder.fadd(weight, builder.load(slot)), slot)
                    weights.append(builder.add(builder.bitcast(weight, ints), everywhere(ints, 0x8000)))
                for chain in range(0, _CHAINS, 2):
                    even = builder.lshr(weights[chain], everywhere(ints, 16))
                    odd = builder.and_(weights[chain + 1], everywhere(ints, 0xFFFF0000))
                    place = builder.mul(builder.lshr(builder.add(index, _I64(chain)), _I64(1)), _LINE)
                    put(builder, builder.or_(even, odd), pairs_at, place)
            parts = [builder.load(slot) for slot in totals]
            total = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
            kept = exponential(builder, builder.fsub(before, largest))
            put(builder, largest, state_at, 2 * 64)
            put(builder, math(builder, "fma", share, kept, total), state_at, 3 * 64)
            put(builder, kept, state_at, 4 * 64)

        with builder.if_else(masks) as (then, otherwise):
            with then:
                _narrowest(builder, wanted, lambda lanes: turn(True, lanes))
            with otherwise:
                _narrowest(builder, wanted, lambda lanes: turn(False, lanes))
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, types.float32, whole), code


@intrinsic
def turn_pairs(_context, pairs, weights):  # type: ignore[no-untyped-def]
    """weights [16 queries, 16 pairs] = pairs [16 pairs, 16 queries], of 32 bits each: in four rounds rows and columns swap halves."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pairs_at, weights_at = arguments
        rows = [at(builder, pairs_at, row * 64, _INTS) for row in range(ROWS)]
        for row, value in enumerate(swapped(builder, rows)):
            put(builder, value, weights_at, row * 64)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64), code


@intrinsic(prefer_literal=True)
def pair_values(_context, values, known, tiles, half, ahead, dim):  # type: ignore[no-untyped-def]
    """16 keys' values, bfloat16 [16, dim], into half (0 or 1) of dim / 16 tiles of [16 pairs of keys, 16 dimensions, 2].

    Keys from `known` on count as zeros, whatever stands there: a weight of zero would not silence a NaN. Memory is asked for from `ahead`
    on, as much as the values take.
    """
    if not _literals(dim):
        return None
    size = dim.literal_value
    wide = ir.VectorType(_I16, 2 * COLUMNS)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values_at, real, tiles_at, which, ahead_at = arguments[:5]
        target = builder.add(tiles_at, builder.mul(which, _I64(BYTES // 2)))
        nothing = everywhere(wide, 0)
        for part in range(0, size, 32):
            for pair in range(ROWS // 2):
                for line in range(2):
                    prefetch(builder, builder.add(ahead_at, _I64(part * ROWS * 2 + pair * 128 + line * 64)))
                both = []
                for key in (2 * pair, 2 * pair + 1):
                    value = at(builder, values_at, (key * size + part) * 2, wide, 2)
                    both.append(builder.select(builder.icmp_signed(">", real, _I64(key)), value, nothing))
                for tile in range(2):
                    order = [tile * COLUMNS + place // 2 + (place % 2) * 2 * COLUMNS for place in range(2 * COLUMNS)]
                    mixed = builder.shuffle_vector(*both, ir.Constant(ir.VectorType(_I32, 2 * COLUMNS), order))
                    put(builder, mixed, target, (part // COLUMNS + tile) * BYTES + pair * 64)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, dim), code


@intrinsic(prefer_literal=True)
def weigh_values(_context, weights, values, count, kept, sums, used, dim, dots):  # type: ignore[no-untyped-def]
    """sums = sums * kept + weights . values over `count` times 32 keys.

    Addresses of weights, `count` tiles of [16 queries, 32 keys]; values, for each 32 keys dim / 16 tiles (pair_values); float32 kept [16
    queries] and sums [dim / 16, 16 queries, 16 dimensions]. Queries from `used` on don't matter.
    """
    if not _literals(dim, dots):
        return None
    num_tiles, by_dots = dim.literal_value // COLUMNS, bool(dots.literal_value)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        weights_at, values_at, number, kept_at, sums_at, wanted = arguments[:6]

        def keep(first: int, end: int) -> None:
            for row in range(first, end):
                factor = spread(builder, at(builder, kept_at, row * 4, _F32), _FLOATS)
                for tile in range(num_tiles):
                    place = tile * BYTES + row * 64
                    put(builder, builder.fmul(at(builder, sums_at, place, _FLOATS), factor), sums_at, place)

        if by_dots:
            for first in range(0, ROWS, _DOT_ROWS):
                with builder.if_then(builder.icmp_signed(">", wanted, _I64(first))):
                    keep(first, first + _DOT_ROWS)
                    rows = [(builder.add(weights_at, _I64(row * 64)), row * 64) for row in range(first, first + _DOT_ROWS)]
                    for base in range(0, num_tiles, _DOT_TILES):
                        offset = _I64(base * BYTES)
                        cpu_dots.multiply_tiles(
                            builder, rows, _DOT_TILES, BYTES, builder.add(values_at, offset), num_tiles * BYTES, number,
                            builder.add(sums_at, offset), _FALSE,
                        )  # fmt: skip
            return ir.Constant(_I64, 0)
        keep(0, ROWS)
        for base in range(0, num_tiles, _SUMS):
            some = range(min(_SUMS, num_tiles - base))
            for tile in some:
                cpu_tiles.load(builder, tile, builder.add(sums_at, _I64((base + tile) * BYTES)), _LINE)
            with cgutils.for_range(builder, number) as loop:
                cpu_tiles.load(builder, _SUMS, builder.add(weights_at, builder.mul(loop.index, _I64(BYTES))), _LINE)
                here = builder.add(values_at, builder.mul(loop.index, _I64(num_tiles * BYTES)))
                for tile in some:
                    operand = _SUMS + 1 + tile % 2
                    cpu_tiles.load(builder, operand, builder.add(here, _I64((base + tile) * BYTES)), _LINE)
                    cpu_tiles.dot(builder, tile, _SUMS, operand)
            for tile in some:
                cpu_tiles.store(builder, tile, builder.add(sums_at, _I64((base + tile) * BYTES)), _LINE)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, dim, dots), code


@intrinsic(prefer_literal=True)
def turn_queries(_context, addresses, queries, dim):  # type: ignore[no-untyped-def]
    """Queries as tiles [dim / 2 pairs of dimensions, 16 queries, 2] from 16 rows bfloat16 [dim], int64 addresses [16]."""
    if not isinstance(dim, types.IntegerLiteral):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        addresses_at, queries_at, _ = arguments
        rows = [at(builder, addresses_at, 8 * row, _I64, 8) for row in range(COLUMNS)]
        for step in range(dim.literal_value // DEPTH):
            for pair, value in enumerate(swapped(builder, [at(builder, row, step * 64, _INTS, 2) for row in rows])):
                put(builder, value, queries_at, step * BYTES + pair * 64)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, dim), code


@intrinsic(prefer_literal=True)
def finish_row(_context, totals, factor, out, dim):  # type: ignore[no-untyped-def]
    """out bfloat16 [dim] = totals times factor, float32 [16] of each tile of dimensions."""
    if not isinstance(dim, types.IntegerLiteral):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        totals_at, number, out_at, _ = arguments
        factors = spread(builder, number, _FLOATS)
        for tile in range(dim.literal_value // COLUMNS):
            value = builder.fmul(at(builder, totals_at, tile * BYTES, _FLOATS), factors)
            write(builder, value, out_at, tile * COLUMNS * 2, True)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.float32, types.int64, dim), code
