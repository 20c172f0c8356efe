"""Attention of rows with one new token, of few query heads for each KV head, by dots (dots.py), for bfloat16.

Inlined into tile_attention.py, where a tile of 16 queries would hold little or nothing. Scores lie with 16 keys side by side, all
of a query in a row: the softmax, a running one over AT_ONCE keys, fills its vectors whatever the number of queries. For one query, a key
is multiplied as it lies and 16 keys' sums are added up across; for several, 16 keys are turned once, a pair of dimensions a vector.
Weights are rounded to bfloat16, and two keys' values are mixed as the dots take them, once for all queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.attention_layout import (
    AT_ONCE,
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
from kernels_cpu.dots import dot, rounded
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import as_float, pointer
from kernels_cpu.tile_attention_vectors import LEAST, exponential
from kernels_cpu.vectors import at, everywhere, larger, math, prefetch, put, spread, swapped, totals, write

LANES, DEPTH = 16, 32
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS, _HALVES = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I16, DEPTH)
_ORDER = ir.VectorType(_I32, DEPTH)
# Sums that are added side by side, so that none waits for the one before.
_CHAINS = 2
# Instructions: to add up 16 keys' sums for a query, and to turn 64 bytes of 16 keys for all of them.
_ADDING_UP, _TURNING = 45, 64
# Query heads of a KV head that are served so, at most: their sums stay in registers.
MOST_HEADS = 8
# Pieces of work for each thread from which on it may hold one more than it works on.
ENOUGH = 8
# Numbers of a query's state: its largest scaled score, its weights' sum, and what earlier sums are multiplied with.
LARGEST, SHARE, KEPT = range(3)


def _added(builder: ir.IRBuilder, values: list[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = builder.fadd(total, value)
    return total


def _across(builder: ir.IRBuilder, value: ir.Value, join: Any) -> ir.Value:
    """All lanes joined, in every lane."""
    width = LANES // 2
    while width:
        order = ir.Constant(ir.VectorType(_I32, LANES), [lane ^ width for lane in range(LANES)])
        value = join(value, builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), order))
        width //= 2
    return value


def _scores_of(builder: ir.IRBuilder, keys: list[list[ir.Value]], queries: list[list[ir.Value]]) -> list[ir.Value]:
    """A query at a time: each key's products are added up side by side, then across. Of few queries: the rest is as much for each."""
    found = []
    for query in queries:
        sums = [everywhere(_FLOATS, 0.0)] * LANES
        for part, rows in enumerate(keys):
            sums = [dot(builder, total, query[part], row) for total, row in zip(sums, rows)]
        found.append(totals(builder, sums))
    return found


@intrinsic(prefer_literal=True)
def _score_keys(_context, queries, keys, scores, step, ahead, heads, dim):  # type: ignore[no-untyped-def]
    """scores float32 [heads, 16], rows `step` bytes apart, = queries [heads, dim] . keys [16, dim], bfloat16 both; dim a multiple of 32.

    ahead: from there on, a line of memory is asked for with every line of keys.
    """
    if not (isinstance(heads, types.IntegerLiteral) and isinstance(dim, types.IntegerLiteral)):
        return None
    count, width = heads.literal_value, dim.literal_value
    parts = range(0, width * 2, DEPTH * 2)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        queries_at, keys_at, scores_at, apart, ahead_at = arguments[:5]

        def rows(part: int, asks: bool = False) -> list[ir.Value]:
            found = []
            for key in range(LANES):
                if asks:
                    prefetch(builder, builder.add(ahead_at, _I64(part * LANES + key * 64)))
                found.append(at(builder, keys_at, key * width * 2 + part, _INTS, 2))
            return found

        if count * _ADDING_UP <= len(parts) * _TURNING:
            of_queries = [[at(builder, queries_at, query * width * 2 + part, _INTS, 2) for part in parts] for query in range(count)]
            found = _scores_of(builder, [rows(part, True) for part in parts], of_queries)
        else:
            chains = [[everywhere(_FLOATS, 0.0)] * _CHAINS for _ in range(count)]
            for part in parts:
                for pair, turned in enumerate(swapped(builder, rows(part))):
                    prefetch(builder, builder.add(ahead_at, _I64(part * LANES + pair * 64)))
                    for query, chain in enumerate(chains):
                        inputs = spread(builder, at(builder, queries_at, query * width * 2 + part + pair * 4, _I32, 2), _INTS)
                        chain[pair % _CHAINS] = dot(builder, chain[pair % _CHAINS], turned, inputs)
            found = [_added(builder, chain) for chain in chains]
        for query, value in enumerate(found):
            put(builder, value, scores_at, builder.mul(apart, _I64(query)))
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, heads, dim), code


@intrinsic
def _soften(_context, scores, count, low, high, scale, weights, state):  # type: ignore[no-untyped-def]
    """A turn of a running softmax of scale * scores float32 [count], of those from `low` on and before `high`; count is a multiple of 16.

    Addresses: of weights, bfloat16 [count], not divided by their sum; of state, float32 [LARGEST, SHARE, KEPT].
    """

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        scores_at, number, begin, end, factor, weights_at, state_at = arguments
        places = ir.Constant(_INTS, list(range(LANES)))
        lowest, highest = (spread(builder, builder.trunc(limit, _I32), _INTS) for limit in (begin, end))
        scales = spread(builder, factor, _FLOATS)

        def masked(value: ir.Value, index: ir.Value, otherwise: float) -> ir.Value:
            """The value of keys that are seen. Most turns see all of theirs, and need not compare."""
            inside = builder.and_(builder.icmp_signed(">=", index, begin), builder.icmp_signed("<=", builder.add(index, _I64(LANES)), end))
            before = builder.block
            with builder.if_then(builder.not_(inside), likely=False):
                key = builder.add(spread(builder, builder.trunc(index, _I32), _INTS), places)
                seen = builder.and_(builder.icmp_signed(">=", key, lowest), builder.icmp_signed("<", key, highest))
                some = builder.select(seen, value, everywhere(_FLOATS, otherwise))
                there = builder.block
            result = builder.phi(_FLOATS)
            result.add_incoming(value, before)
            result.add_incoming(some, there)
            return result

        most, total = cgutils.alloca_once(builder, _FLOATS), cgutils.alloca_once(builder, _FLOATS)
        builder.store(everywhere(_FLOATS, LEAST), most)
        builder.store(everywhere(_FLOATS, 0.0), total)
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(LANES)) as (index, _):
            value = builder.fmul(at(builder, scores_at, builder.mul(index, _I64(4)), _FLOATS), scales)
            builder.store(larger(builder, masked(value, index, LEAST), builder.load(most)), most)
        before, so_far = (spread(builder, at(builder, state_at, place * 4, _F32), _FLOATS) for place in (LARGEST, SHARE))
        largest = larger(builder, _across(builder, builder.load(most), lambda a, b: larger(builder, a, b)), before)
        away = builder.fneg(largest)
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(LANES)) as (index, _):
            value = math(builder, "fma", at(builder, scores_at, builder.mul(index, _I64(4)), _FLOATS), scales, away)
            weight = masked(exponential(builder, value), index, 0.0)
            builder.store(builder.fadd(weight, builder.load(total)), total)
            put(builder, rounded(builder, weight), weights_at, builder.mul(index, _I64(2)), 2)
        kept = exponential(builder, builder.fsub(before, largest))
        share = math(builder, "fma", so_far, kept, _across(builder, builder.load(total), builder.fadd))
        for place, value in ((LARGEST, largest), (SHARE, share), (KEPT, kept)):
            put(builder, builder.extract_element(value, _I32(0)), state_at, place * 4)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, types.float32, whole, whole), code


@intrinsic(prefer_literal=True)
def _add_values(_context, weights, step, values, sums, first, last, ahead, heads, dim):  # type: ignore[no-untyped-def]
    """sums float32 [heads, dim] += weights [heads, 16], rows `step` bytes apart, . values [16, dim], bfloat16 both, of some keys.

    These are from `first` on and before `last`. Others count as zeros, whatever stands there: a weight of zero would not silence a NaN.
    ahead: as in _score_keys.
    """
    if not (isinstance(heads, types.IntegerLiteral) and isinstance(dim, types.IntegerLiteral)):
        return None
    count, width = heads.literal_value, dim.literal_value
    chains = _CHAINS if count < MOST_HEADS // 2 else 1

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        weights_at, apart, values_at, sums_at, begin, end, ahead_at = arguments[:7]
        rows_at = [builder.add(weights_at, builder.mul(apart, _I64(query))) for query in range(count)]
        all_seen = builder.and_(builder.icmp_signed("<=", begin, _I64(0)), builder.icmp_signed(">=", end, _I64(LANES)))
        orders = [ir.Constant(_ORDER, [tile * LANES + place // 2 + (place % 2) * DEPTH for place in range(DEPTH)]) for tile in range(2)]

        def turn(masked: bool) -> None:
            for part in range(0, width, DEPTH):
                place_of = [[(query * width + part + tile * LANES) * 4 for tile in range(2)] for query in range(count)]
                sums_of = [[[at(builder, sums_at, place, _FLOATS)] for place in places] for places in place_of]
                for chain in (chain for of_query in sums_of for chain in of_query):
                    chain += [everywhere(_FLOATS, 0.0)] * (chains - 1)
                for pair in range(LANES // 2):
                    both = []
                    for key in (2 * pair, 2 * pair + 1):
                        prefetch(builder, builder.add(ahead_at, _I64(part * 2 * LANES + key * 64)))
                        value = at(builder, values_at, (key * width + part) * 2, _HALVES, 2)
                        if masked:
                            known = builder.and_(builder.icmp_signed("<=", begin, _I64(key)), builder.icmp_signed(">", end, _I64(key)))
                            value = builder.select(known, value, everywhere(_HALVES, 0))
                        both.append(value)
                    mixed = [builder.bitcast(builder.shuffle_vector(*both, order), _INTS) for order in orders]
                    for row_at, of_query in zip(rows_at, sums_of):
                        weight = spread(builder, at(builder, row_at, pair * 4, _I32, 2), _INTS)
                        for chain, operand in zip(of_query, mixed):
                            chain[pair % chains] = dot(builder, chain[pair % chains], operand, weight)
                for places, of_query in zip(place_of, sums_of):
                    for place, chain in zip(places, of_query):
                        put(builder, _added(builder, chain), sums_at, place)

        with builder.if_else(all_seen) as (then, otherwise):
            with then:
                turn(False)
            with otherwise:
                turn(True)
        return ir.Constant(_I64, 0)

    whole = types.int64
    return whole(whole, whole, whole, whole, whole, whole, whole, heads, dim), code


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
def decode_by_dots(address, mine, dim, heads, kv_heads, size, together):  # type: ignore[no-untyped-def]
    """A row's queries against some of its keys, of `together` KV heads with `heads` queries each; this thread takes parts as long as there
    are any.

    Results go into OUT or, of rows of several parts, into PARTIALS. Arguments as in attention_ends.py; `mine` at a line's begin.
    """
    a = carray(address, (NUM_ARGUMENTS,), np.int64)
    threads, rows, window = a[THREADS], a[ROWS], a[WINDOW]
    block_bytes, row_bytes = size * dim * 2, (heads + 2) * kv_heads * dim * 2
    lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
    starts = carray(pointer(a[STARTS]), (rows + 1,), np.int64)
    tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
    scale = as_float(np.uint32(a[SCALE_BITS]))
    split, decoding = a[SPLIT], a[DECODING]
    decode_row = carray(pointer(a[DECODE_ROW]), (decoding,), np.int64)
    part_first = carray(pointer(a[PART_FIRST]), (decoding * split,), np.int64)
    part_end = carray(pointer(a[PART_END]), (decoding * split,), np.int64)
    groups, queries, most = kv_heads // together, together * heads, max(1, AT_ONCE // size)
    items = decoding * split * groups
    portion = max(1, items // (threads * 16))
    partials = carray(pointer(a[PARTIALS]), (decoding * split * kv_heads * heads, dim + 2), np.float32)
    states_at = mine
    totals_at = states_at + queries * 64
    scores_at = totals_at + queries * dim * 4
    weights_at = scores_at + queries * most * size * 4
    states = carray(pointer(states_at), (queries, 16), np.float32)
    sums = carray(pointer(totals_at), (queries, dim), np.float32)
    # Where there are enough for all, a portion is taken before it is needed: memory can bring what this thread, and no other, reads next.
    plenty = items >= ENOUGH * threads
    start = fetch_add(a[COUNTERS] + 8, portion)
    while start < items:
        stop = min(start + portion, items)
        then = fetch_add(a[COUNTERS] + 8, portion) if plenty else stop
        for item in range(start, stop):
            part, head = item // groups, item % groups * together
            row = decode_row[part // split]
            token, length = starts[row], lengths[row]
            begin = max(part_first[part], length - window) if window > 0 else part_first[part]
            end = max(begin, part_end[part])
            first, last = begin // size, (end + size - 1) // size if end > begin else begin // size
            for q in range(queries):
                states[q, LARGEST], states[q, SHARE] = LEAST, np.float32(0.0)
                for d in range(dim):
                    sums[q, d] = np.float32(0.0)
            for chunk in range(first, last, most):
                blocks = min(most, last - chunk)
                # Meanwhile memory brings what comes next of this row, else the next row's first blocks: keys, then values.
                next_row, next_head, next_first, next_end = row, head, chunk + blocks, last
                if next_first == last:
                    beyond = min(item + 1 if item + 1 < stop else then, items - 1)
                    next_row, next_head = decode_row[beyond // groups // split], beyond % groups * together
                    next_first, next_end = part_first[beyond // groups] // size, (part_end[beyond // groups] + size - 1) // size
                for b in range(blocks):
                    keys = a[K_CACHE] + (np.int64(tables[row, chunk + b]) * kv_heads + head) * block_bytes
                    soon = keys
                    if next_first + b < next_end:
                        soon = a[K_CACHE] + (np.int64(tables[next_row, next_first + b]) * kv_heads + next_head) * block_bytes
                    for h in range(together):
                        of_head = a[QKV] + token * row_bytes + (head + h) * heads * dim * 2
                        for key in range(0, size, LANES):
                            place, scores = h * block_bytes + key * dim * 2, scores_at + ((h * heads * most + b) * size + key) * 4
                            _score_keys(of_head, keys + place, scores, most * size * 4, soon + place, heads, dim)
                low, high = begin - chunk * size, end - chunk * size
                for q in range(queries):
                    place = q * most * size
                    _soften(scores_at + place * 4, blocks * size, low, high, scale, weights_at + place * 2, states_at + q * 64)
                    if chunk > first:
                        for d in range(dim):
                            sums[q, d] *= states[q, KEPT]
                for b in range(blocks):
                    values = a[V_CACHE] + (np.int64(tables[row, chunk + b]) * kv_heads + head) * block_bytes
                    soon = values
                    if next_first + b < next_end:
                        soon = a[V_CACHE] + (np.int64(tables[next_row, next_first + b]) * kv_heads + next_head) * block_bytes
                    for h in range(together):
                        for key in range(0, size, LANES):
                            place, weights = h * block_bytes + key * dim * 2, weights_at + ((h * heads * most + b) * size + key) * 2
                            seen, limit, of_head = low - b * size - key, high - b * size - key, totals_at + h * heads * dim * 4
                            _add_values(weights, most * size * 2, values + place, of_head, seen, limit, soon + place, heads, dim)
            for q in range(queries):
                if split > 1:
                    place = (part * kv_heads + head) * heads + q
                    for d in range(dim):
                        partials[place, d] = sums[q, d]
                    partials[place, dim], partials[place, dim + 1] = states[q, LARGEST], states[q, SHARE]
                else:
                    out_at = a[OUT] + ((token * kv_heads + head) * heads + q) * dim * 2
                    _finish(totals_at + q * dim * 4, np.float32(1.0) / states[q, SHARE], out_at, dim)
        start = then if plenty else fetch_add(a[COUNTERS] + 8, portion)
