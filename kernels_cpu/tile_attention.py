"""Attention over paged keys and values on tiles, by AMX or dots, for bfloat16.

Work is one kind: up to MOST_ROWS query rows (tokens times heads of a group) of one row and KV head, in blocks of 16, against a range of
keys, KEYS at a time, with a running softmax. A decoding row is such a block with one token, but where tiles would be nearly empty: of a
group of one head, and by dots of up to MOST_HEADS, decoding is done without them (dots_decode.py).
"""

from __future__ import annotations

import numpy as np
from numba import carray

from kernels_cpu.attention_ends import LEAST, merge_parts, store_keys_values
from kernels_cpu.attention_layout import (
    COUNTERS,
    DECODE_ROW,
    DECODING,
    K_CACHE,
    KEYS,
    LENGTHS,
    NUM_ARGUMENTS,
    NUM_NEW,
    OUT,
    PART_END,
    PART_FIRST,
    PARTIALS,
    QKV,
    ROWS,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_BYTES,
    SPLIT,
    STARTS,
    STATE,
    TABLE_WIDTH,
    TABLES,
    THREADS,
    TILE_CONFIGURATION,
    TILE_FIRST,
    TILE_ROW,
    TILES,
    V_CACHE,
    WINDOW,
    heads_together,
    tile_tokens,
)
from kernels_cpu.dots_decode import MOST_HEADS, decode_by_dots
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import FAST, Source, as_float, barrier, kernel, pointer, thread_number, zeros_on_stack
from kernels_cpu.tile_attention_vectors import finish_row, pair_values, score_tile, soften, turn_pairs, turn_queries, weigh_values
from kernels_cpu.tile_layout import BYTES, COLUMNS, DEPTH
from kernels_cpu.tiles import configure, release

# Places in a block's state, 16 numbers each (soften).
LOW, HIGH, LARGEST, SHARE, KEPT = range(STATE)


def attention(head_dim: int, group: int, kv_heads: int, block_size: int, dots: bool) -> Source:
    """The kernel for these sizes, by AMX or by dots."""
    dim, size, heads, by_dots = head_dim, block_size, group, int(dots)
    few_heads = group == 1 or (dots and group <= MOST_HEADS)
    all_heads, together = (group + 2) * kv_heads, heads_together(dim, kv_heads, size)
    token_tile = tile_tokens(group, True)
    most_blocks = -(-token_tile * group // COLUMNS)
    lanes, tile_bytes, keys_at_once, state_size = COLUMNS, BYTES, KEYS, STATE
    steps, dim_tiles = dim // DEPTH, dim // COLUMNS
    homes_bytes, nothing_bytes = 8 * COLUMNS, 2 * head_dim
    block_bytes, head_bytes = kv_heads * size * dim * 2, size * dim * 2

    @kernel(FAST)
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        me, threads, rows, window = thread_number(), a[THREADS], a[ROWS], a[WINDOW]
        mine = (a[SCRATCH] + me * a[SCRATCH_BYTES] + 63) // 64 * 64
        store_keys_values(address, me, mine, dim, heads, kv_heads, size, 1)
        if threads > 1:
            barrier()
        configure(a[TILE_CONFIGURATION], by_dots)
        lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
        num_new = carray(pointer(a[NUM_NEW]), (rows,), np.int64)
        starts = carray(pointer(a[STARTS]), (rows + 1,), np.int64)
        tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
        scale = as_float(np.uint32(a[SCALE_BITS]))
        tile_row = carray(pointer(a[TILE_ROW]), (a[TILES],), np.int64)
        tile_first = carray(pointer(a[TILE_FIRST]), (a[TILES],), np.int64)
        split, decoding = a[SPLIT], a[DECODING]
        decode_row = carray(pointer(a[DECODE_ROW]), (decoding,), np.int64)
        part_first = carray(pointer(a[PART_FIRST]), (decoding * split,), np.int64)
        part_end = carray(pointer(a[PART_END]), (decoding * split,), np.int64)
        partials = carray(pointer(a[PARTIALS]), (decoding * split * kv_heads, heads, dim + 2), np.float32)

        queries_at = mine
        totals_at = queries_at + most_blocks * steps * tile_bytes
        states_at = totals_at + most_blocks * dim_tiles * tile_bytes
        scores_at = states_at + most_blocks * state_size * lanes * 4
        pairs_at = scores_at + keys_at_once * lanes * 4
        weights_at = pairs_at + keys_at_once * lanes * 2
        values_at = weights_at + keys_at_once * lanes * 2
        homes_at, nothing_at = zeros_on_stack(homes_bytes), zeros_on_stack(nothing_bytes)
        homes = carray(pointer(homes_at), (lanes,), np.int64)
        totals = carray(pointer(totals_at), (most_blocks, dim_tiles, lanes, lanes), np.float32)
        limits = carray(pointer(states_at), (most_blocks, state_size, lanes), np.int32)
        states = carray(pointer(states_at), (most_blocks, state_size, lanes), np.float32)
        tile_items = a[TILES] * kv_heads
        items = tile_items if few_heads else tile_items + decoding * split * kv_heads
        portion = max(1, items // (threads * 16))
        start = fetch_add(a[COUNTERS], portion)
        while start < items:
            for item in range(start, min(start + portion, items)):
                head = item % kv_heads
                if item < tile_items:
                    row, first = tile_row[item // kv_heads], tile_first[item // kv_heads]
                    count = min(token_tile, num_new[row] - first)
                    begin, end = 0, lengths[row] - num_new[row] + first + count
                else:
                    part = (item - tile_items) // kv_heads
                    row, first, count = decode_row[part // split], 0, 1
                    begin, end = part_first[part], part_end[part]
                token, position = starts[row] + first, lengths[row] - num_new[row] + first
                if window > 0:
                    begin = max(begin, position + 1 - window)
                used = count * heads
                blocks = (used + lanes - 1) // lanes
                for b in range(blocks):
                    for lane in range(lanes):
                        r = b * lanes + lane
                        number = (token + r // heads) * all_heads + head * heads + r % heads
                        homes[lane] = a[QKV] + number * dim * 2 if r < used else nothing_at
                    turn_queries(homes_at, queries_at + b * steps * tile_bytes, dim)
                    for lane in range(lanes):
                        states[b, LARGEST, lane], states[b, SHARE, lane] = LEAST, np.float32(0.0)
                    totals[b, :, :, :] = np.float32(0.0)
                for chunk in range(begin // lanes * lanes, end, keys_at_once):
                    known = min(keys_at_once, end - chunk)
                    # Two groups of 16 keys make the inner index of one product.
                    filled = (known + 2 * lanes - 1) // (2 * lanes) * 2
                    # While this chunk is computed, memory brings the next, line by line: of this piece of work, else of the next one where
                    # that decodes.
                    soon_row, soon_head, soon, soon_end = row, head, chunk + keys_at_once, end
                    if soon >= end and item >= tile_items and item + 1 < min(start + portion, items):
                        following = (item + 1 - tile_items) // kv_heads
                        soon_row, soon_head = decode_row[following // split], (item + 1) % kv_heads
                        soon, soon_end = part_first[following], part_end[following]
                    soon = soon // lanes * lanes
                    soon_at = soon_head * head_bytes
                    for group_of in range(filled):
                        key, later = chunk + group_of * lanes, soon + group_of * lanes
                        # Where a product's second group is behind the last key it counts as zeros: any block will do.
                        home = tables[row, min(key, end - 1) // size]
                        place = a[V_CACHE] + home * block_bytes + head * head_bytes + key % size * dim * 2
                        ahead = place
                        if later < soon_end:
                            ahead = a[V_CACHE] + tables[soon_row, later // size] * block_bytes + soon_at + later % size * dim * 2
                        tiles = values_at + group_of // 2 * dim_tiles * tile_bytes
                        pair_values(place, known - group_of * lanes, tiles, group_of % 2, ahead, dim)
                    for b in range(blocks):
                        last = position + min(count - 1, (b * lanes + lanes - 1) // heads)
                        if last < chunk:
                            continue
                        here = used - b * lanes
                        needed = min(filled, (last + 1 - chunk + 2 * lanes - 1) // (2 * lanes) * 2)
                        for group_of in range(needed):
                            key, later = chunk + group_of * lanes, soon + group_of * lanes
                            home = tables[row, min(key, end - 1) // size]
                            place = a[K_CACHE] + home * block_bytes + head * head_bytes + key % size * dim * 2
                            ahead = place
                            if b == 0 and later < soon_end:
                                ahead = a[K_CACHE] + tables[soon_row, later // size] * block_bytes + soon_at + later % size * dim * 2
                            scores = scores_at + group_of * tile_bytes
                            score_tile(place, queries_at + b * steps * tile_bytes, scores, here, ahead, steps, by_dots)
                        earliest = position + b * lanes // heads
                        masked = earliest + 1 < chunk + needed * lanes or end < chunk + needed * lanes or chunk < begin
                        if window > 0:
                            masked = masked or last + 1 - window > chunk
                        if masked:
                            for lane in range(lanes):
                                at = position + min(count - 1, (b * lanes + lane) // heads)
                                low = max(begin, at + 1 - window) if window > 0 else begin
                                limits[b, LOW, lane] = low - chunk
                                limits[b, HIGH, lane] = min(end, at + 1) - chunk
                        state = states_at + b * state_size * lanes * 4
                        soften(scores_at, needed * lanes, np.int64(masked), state, pairs_at, scale, here)
                        for p in range(needed // 2):
                            turn_pairs(pairs_at + p * tile_bytes, weights_at + p * tile_bytes)
                        kept, sums = state + KEPT * lanes * 4, totals_at + b * dim_tiles * tile_bytes
                        weigh_values(weights_at, values_at, needed // 2, kept, sums, here, dim, by_dots)
                for r in range(used):
                    b, lane = r // lanes, r % lanes
                    if item >= tile_items and split > 1:
                        for d in range(dim):
                            partials[item - tile_items, r, d] = totals[b, d // lanes, lane, d % lanes]
                        partials[item - tile_items, r, dim] = states[b, LARGEST, lane]
                        partials[item - tile_items, r, dim + 1] = states[b, SHARE, lane]
                    else:
                        number = (token + r // heads) * kv_heads * heads + head * heads + r % heads
                        from_totals = totals_at + b * dim_tiles * tile_bytes + lane * 64
                        finish_row(from_totals, np.float32(1.0) / states[b, SHARE, lane], a[OUT] + number * dim * 2, dim)
            start = fetch_add(a[COUNTERS], portion)
        release(by_dots)
        if few_heads:
            decode_by_dots(address, mine, dim, heads, kv_heads, size, together)
        if split > 1:
            barrier()
            merge_parts(address, me, mine, dim, heads, kv_heads, True)

    return run
