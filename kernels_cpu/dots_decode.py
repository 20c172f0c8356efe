"""Attention of rows with one new token where each KV head has one query head, by dots (dots.py), for bfloat16.

Inlined into tile_attention.py: a tile would hold 15 rows of nothing. A key is multiplied with the query as it lies, 16 keys'
sums are then added up side by side; weights are rounded to bfloat16, and two keys' values are mixed as the dots take them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.attention_layout import (
    COUNTERS,
    DECODE_ROW,
    DECODING,
    K_CACHE,
    LENGTHS,
    NUM_ARGUMENTS,
    OUT,
    PART_END,
    PART_FIRST,
    PARTIALS,
    QKV,
    ROWS,
    SCALE_BITS,
    SPLIT,
    STARTS,
    TABLE_WIDTH,
    TABLES,
    THREADS,
    V_CACHE,
    WINDOW,
)
from kernels_cpu.dots import dot
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import as_float, pointer
from kernels_cpu.tile_attention_vectors import LEAST, exponential
from kernels_cpu.vectors import at, everywhere, larger, math, prefetch, put, spread, totals, write

LANES, DEPTH = 16, 32
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS, _HALVES = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I16, DEPTH)
_ORDER = ir.VectorType(_I32, DEPTH)
# Sums of values that are added side by side, so that none waits for the one before.
_CHAINS = 2
# Bytes that memory is asked for before they are needed.
AHEAD = 32 * 1024


def _across(builder: ir.IRBuilder, value: ir.Value, join: Any) -> ir.Value:
    """All lanes joined, in every lane."""
    width = LANES // 2
    while width:
        order = ir.Constant(ir.VectorType(_I32, LANES), [lane ^ width for lane in range(LANES)])
        value = join(value, builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), order))
        width //= 2
    return value


@intrinsic(prefer_literal=True)
def _score_keys(_context, query, keys, scores, ahead, dim, size):  # type: ignore[no-untyped-def]
    """scores float32 [size] = keys [size, dim] . query [dim], bfloat16 both; size a multiple of 16, dim of 32.

    ahead: from there on, a line of memory is asked for with every line of keys.
    """
    if not (isinstance(dim, types.IntegerLiteral) and isinstance(size, types.IntegerLiteral)):
        return None
    width, count = dim.literal_value, size.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        query_at, keys_at, scores_at, ahead_at = arguments[:4]
        parts = range(0, width * 2, DEPTH * 2)
        query_of = [at(builder, query_at, part, _INTS, 2) for part in parts]
        for first in range(0, count, LANES):
            sums = []
            for key in range(first, first + LANES):
                total = everywhere(_FLOATS, 0.0)
                for part, value in zip(parts, query_of):
                    prefetch(builder, builder.add(ahead_at, _I64(key * width * 2 + part)))
                    total = dot(builder, total, value, at(builder, keys_at, key * width * 2 + part, _INTS, 2))
                sums.append(total)
            put(builder, totals(builder, sums), scores_at, first * 4)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, dim, size), code


@intrinsic
def _soften(_context, scores, count, low, high, scale, weights, state):  # type: ignore[no-untyped-def]
    """Softmax of scale * scores float32 [count], of those from `low` on and before `high`; count is a multiple of 16.

    Addresses: of weights, bfloat16 [count], not yet divided by their sum; of state, float32 [2]: the largest scaled score and that sum.
    """

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        scores_at, number, begin, end, factor, weights_at, state_at = arguments
        places = ir.Constant(_INTS, list(range(LANES)))
        lowest, highest = (spread(builder, builder.trunc(limit, _I32), _INTS) for limit in (begin, end))
        scales = spread(builder, factor, _FLOATS)

        def seen(index: ir.Value) -> ir.Value:
            key = builder.add(spread(builder, builder.trunc(index, _I32), _INTS), places)
            return builder.and_(builder.icmp_signed(">=", key, lowest), builder.icmp_signed("<", key, highest))

        most, total = cgutils.alloca_once(builder, _FLOATS), cgutils.alloca_once(builder, _FLOATS)
        builder.store(everywhere(_FLOATS, LEAST), most)
        builder.store(everywhere(_FLOATS, 0.0), total)
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(LANES)) as (index, _):
            value = builder.fmul(at(builder, scores_at, builder.mul(index, _I64(4)), _FLOATS), scales)
            value = builder.select(seen(index), value, everywhere(_FLOATS, LEAST))
            builder.store(larger(builder, value, builder.load(most)), most)
        largest = _across(builder, builder.load(most), lambda a, b: larger(builder, a, b))
        away = builder.fneg(largest)
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(LANES)) as (index, _):
            value = math(builder, "fma", at(builder, scores_at, builder.mul(index, _I64(4)), _FLOATS), scales, away)
            weight = builder.select(seen(index), exponential(builder, value), everywhere(_FLOATS, 0.0))
            builder.store(builder.fadd(weight, builder.load(total)), total)
            write(builder, weight, weights_at, builder.mul(index, _I64(2)), True)
        share = _across(builder, builder.load(total), builder.fadd)
        for place, value in enumerate((largest, share)):
            put(builder, builder.extract_element(value, _I32(0)), state_at, place * 4)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, types.float32, whole, whole), code


@intrinsic(prefer_literal=True)
def _add_values(_context, weights, values, sums, first, last, ahead, dim, size):  # type: ignore[no-untyped-def]
    """sums float32 [dim] += weights [size] . values [size, dim], bfloat16 both, of keys from `first` on and before `last`.

    Other keys count as zeros, whatever stands there: a weight of zero would not silence a NaN. ahead: as in _score_keys.
    """
    if not (isinstance(dim, types.IntegerLiteral) and isinstance(size, types.IntegerLiteral)):
        return None
    width, count = dim.literal_value, size.literal_value

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        weights_at, values_at, sums_at, begin, end, ahead_at = arguments[:6]
        all_seen = builder.and_(builder.icmp_signed("<=", begin, _I64(0)), builder.icmp_signed(">=", end, _I64(count)))
        orders = [ir.Constant(_ORDER, [tile * LANES + place // 2 + (place % 2) * DEPTH for place in range(DEPTH)]) for tile in range(2)]

        def turn(masked: bool) -> None:
            for part in range(0, width, DEPTH):
                parts_of = [[at(builder, sums_at, (part + tile * LANES) * 4, _FLOATS) for tile in range(2)]]
                parts_of += [[everywhere(_FLOATS, 0.0)] * 2 for _ in range(_CHAINS - 1)]
                for pair in range(count // 2):
                    both = []
                    for key in (2 * pair, 2 * pair + 1):
                        prefetch(builder, builder.add(ahead_at, _I64((key * width + part) * 2)))
                        value = at(builder, values_at, (key * width + part) * 2, _HALVES, 2)
                        if masked:
                            known = builder.and_(builder.icmp_signed("<=", begin, _I64(key)), builder.icmp_signed(">", end, _I64(key)))
                            value = builder.select(known, value, everywhere(_HALVES, 0))
                        both.append(value)
                    weight = spread(builder, at(builder, weights_at, pair * 4, _I32, 2), _INTS)
                    chain = parts_of[pair % _CHAINS]
                    for tile, order in enumerate(orders):
                        mixed = builder.bitcast(builder.shuffle_vector(*both, order), _INTS)
                        chain[tile] = dot(builder, chain[tile], mixed, weight)
                for tile in range(2):
                    total = parts_of[0][tile]
                    for chain in parts_of[1:]:
                        total = builder.fadd(total, chain[tile])
                    put(builder, total, sums_at, (part + tile * LANES) * 4)

        with builder.if_else(all_seen) as (then, otherwise):
            with then:
                turn(False)
            with otherwise:
                turn(True)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, dim, size), code


@intrinsic(prefer_literal=True)
def _finish(_context, sums, factor, out, dim):  # type: ignore[no-untyped-def]
    """out bfloat16 [dim] = sums float32 [dim] * factor."""
    if not isinstance(dim, types.IntegerLiteral):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums_at, number, out_at, _ = arguments
        factors = spread(builder, number, _FLOATS)
        for first in range(0, dim.literal_value, LANES):
            write(builder, builder.fmul(at(builder, sums_at, first * 4, _FLOATS), factors), out_at, first * 2, True)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.float32, types.int64, dim), code


@njit(inline="always")
def decode_by_dots(address, mine, dim, kv_heads, size, together):  # type: ignore[no-untyped-def]
    """A row's one query against some of its keys, all scores first; this thread takes parts as long as there are any.

    Results go into OUT or, of rows of several parts, into PARTIALS. Arguments as in attention_ends.py; `mine` at a line's begin.
    """
    a = carray(address, (NUM_ARGUMENTS,), np.int64)
    threads, rows, window = a[THREADS], a[ROWS], a[WINDOW]
    block_bytes = size * dim * 2
    run_bytes = together * block_bytes
    ahead = max(1, AHEAD // run_bytes)
    lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
    starts = carray(pointer(a[STARTS]), (rows + 1,), np.int64)
    tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
    scale = as_float(np.uint32(a[SCALE_BITS]))
    split, decoding = a[SPLIT], a[DECODING]
    decode_row = carray(pointer(a[DECODE_ROW]), (decoding,), np.int64)
    part_first = carray(pointer(a[PART_FIRST]), (decoding * split,), np.int64)
    part_end = carray(pointer(a[PART_END]), (decoding * split,), np.int64)
    groups = kv_heads // together
    items = decoding * split * groups
    portion = max(1, items // (threads * 16))
    partials = carray(pointer(a[PARTIALS]), (decoding * split * kv_heads, dim + 2), np.float32)
    states_at = mine
    totals_at = states_at + together * 64
    scores_at = totals_at + together * dim * 4
    states = carray(pointer(states_at), (together, 16), np.float32)
    sums = carray(pointer(totals_at), (together, dim), np.float32)
    start = fetch_add(a[COUNTERS] + 8, portion)
    while start < items:
        for item in range(start, min(start + portion, items)):
            part, group = item // groups, item % groups
            row, head = decode_row[part // split], group * together
            token, length = starts[row], lengths[row]
            begin = max(part_first[part], length - window) if window > 0 else part_first[part]
            end = max(begin, part_end[part])
            first, last = begin // size, (end + size - 1) // size
            if begin == end:
                last = first
            blocks = last - first
            weights_at = scores_at + together * blocks * size * 4
            # Of a short row, memory brings the next one's keys meanwhile, then its values; of a long one, what comes next of itself.
            next_row, next_first, next_end, next_head = row, first + ahead, last, head
            if blocks <= ahead:
                beyond = min(item + 1, items - 1)
                next_row, next_head = decode_row[beyond // groups // split], beyond % groups * together
                next_first, next_end = part_first[beyond // groups] // size, (part_end[beyond // groups] + size - 1) // size
            for b in range(blocks):
                keys = a[K_CACHE] + (np.int64(tables[row, first + b]) * kv_heads + head) * block_bytes
                soon = keys
                if next_first + b < next_end:
                    soon = a[K_CACHE] + (np.int64(tables[next_row, next_first + b]) * kv_heads + next_head) * block_bytes
                elif blocks > ahead:
                    place = next_first + b - blocks
                    soon = a[V_CACHE] + (np.int64(tables[row, place]) * kv_heads + head) * block_bytes
                for h in range(together):
                    query = a[QKV] + (token * 3 * kv_heads + head + h) * dim * 2
                    scores = scores_at + (h * blocks + b) * size * 4
                    _score_keys(query, keys + h * block_bytes, scores, soon + h * block_bytes, dim, size)
            low, high = begin - first * size, end - first * size
            for h in range(together):
                place = h * blocks * size
                _soften(scores_at + place * 4, blocks * size, low, high, scale, weights_at + place * 2, states_at + h * 64)
                for d in range(dim):
                    sums[h, d] = np.float32(0.0)
            for b in range(blocks):
                values = a[V_CACHE] + (np.int64(tables[row, first + b]) * kv_heads + head) * block_bytes
                soon = values
                if next_first + b < next_end:
                    soon = a[V_CACHE] + (np.int64(tables[next_row, next_first + b]) * kv_heads + next_head) * block_bytes
                seen, limit = low - b * size, high - b * size
                for h in range(together):
                    weights, place = weights_at + (h * blocks + b) * size * 2, h * block_bytes
                    _add_values(weights, values + place, totals_at + h * dim * 4, seen, limit, soon + place, dim, size)
            for h in range(together):
                if split > 1:
                    place = part * kv_heads + head + h
                    for d in range(dim):
                        partials[place, d] = sums[h, d]
                    partials[place, dim], partials[place, dim + 1] = states[h, 0], states[h, 1]
                else:
                    out_at = a[OUT] + (token * kv_heads + head + h) * dim * 2
                    _finish(totals_at + h * dim * 4, np.float32(1.0) / states[h, 1], out_at, dim)
        start = fetch_add(a[COUNTERS] + 8, portion)
