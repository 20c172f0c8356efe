"""Attention over paged keys and values, one layer of any mix of rows, in float32."""

from __future__ import annotations

import numpy as np
from numba import carray

from kernels_cpu.attention_decode import decode_parts
from kernels_cpu.attention_ends import LEAST, merge_parts, store_keys_values
from kernels_cpu.attention_layout import (
    COUNTERS,
    HEIGHT,
    K_CACHE,
    KEYS,
    LENGTHS,
    NUM_ARGUMENTS,
    NUM_BLOCKS,
    NUM_NEW,
    OUT,
    QKV,
    ROWS,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_BYTES,
    SPLIT,
    STARTS,
    TABLE_WIDTH,
    TABLES,
    THREADS,
    TILE_FIRST,
    TILE_ROW,
    TILES,
    TOKENS,
    V_CACHE,
    WINDOW,
    blocks_of,
    tile_tokens,
)
from kernels_cpu.linear_layout import FLOAT32, PANEL
from kernels_cpu.linear_vectors import fetch_add, multiply_panel
from kernels_cpu.native import FAST, Source, as_float, barrier, exponential, kernel, narrow, pointer, thread_number, widen


def attention(head_dim: int, group: int, kv_heads: int, block_size: int, bf16: bool) -> Source:
    """The kernel for these sizes."""
    dim, size, heads = head_dim, block_size, group
    all_heads = (group + 2) * kv_heads
    dtype = np.uint16 if bf16 else np.float32
    is_bf16 = int(bf16)
    tokens_of_tile = tile_tokens(group, False)
    tile_blocks = blocks_of(group, tokens_of_tile)
    panels = -(-dim // PANEL)
    width = panels * PANEL
    by_dim = 2 if dim % 2 == 0 else 1
    plain, height, panel, keys_at_once, least = FLOAT32, HEIGHT, PANEL, KEYS, LEAST

    @kernel(FAST)
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        me, threads, tokens, rows, window = thread_number(), a[THREADS], a[TOKENS], a[ROWS], a[WINDOW]
        lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
        num_new = carray(pointer(a[NUM_NEW]), (rows,), np.int64)
        starts = carray(pointer(a[STARTS]), (rows + 1,), np.int64)
        tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
        k_cache = carray(pointer(a[K_CACHE]), (a[NUM_BLOCKS], kv_heads, size * dim), dtype)
        v_cache = carray(pointer(a[V_CACHE]), (a[NUM_BLOCKS], kv_heads, size * dim), dtype)
        qkv = carray(pointer(a[QKV]), (tokens, all_heads, dim), dtype)
        out = carray(pointer(a[OUT]), (tokens, kv_heads * heads, dim), dtype)
        scale = as_float(np.uint32(a[SCALE_BITS]))
        mine = a[SCRATCH] + me * a[SCRATCH_BYTES]

        store_keys_values(address, me, mine, dim, heads, kv_heads, size, is_bf16)
        if threads > 1:
            barrier()

        # Tiles: several queries of a row against its keys, KEYS of them at a time, with a running softmax.
        tile_row = carray(pointer(a[TILE_ROW]), (a[TILES],), np.int64)
        tile_first = carray(pointer(a[TILE_FIRST]), (a[TILES],), np.int64)
        most_rows = tile_blocks * height
        queries_at = mine
        turned_at = queries_at + most_rows * dim * 4
        values_at = turned_at + keys_at_once * dim * 4
        weights_at = values_at + keys_at_once * width * 4
        scores_at = weights_at + keys_at_once * height * 4
        sums_at = scores_at + keys_at_once * height * 4
        totals_at = sums_at + height * panel * 4
        queries = carray(pointer(queries_at), (tile_blocks, dim, height), np.float32)
        turned = carray(pointer(turned_at), (keys_at_once // panel, dim, panel), np.float32)
        values = carray(pointer(values_at), (panels, keys_at_once, panel), np.float32)
        weights = carray(pointer(weights_at), (keys_at_once, height), np.float32)
        scores = carray(pointer(scores_at), (height, keys_at_once), np.float32)
        sums = carray(pointer(sums_at), (height, panel), np.float32)
        totals = carray(pointer(totals_at), (most_rows, width), np.float32)
        largest = carray(pointer(totals_at + most_rows * width * 4), (most_rows,), np.float32)
        share = carray(pointer(totals_at + most_rows * (width + 1) * 4), (most_rows,), np.float32)
        item = fetch_add(a[COUNTERS], 1)
        while item < a[TILES] * kv_heads:
            row, first, head = tile_row[item // kv_heads], tile_first[item // kv_heads], item % kv_heads
            count = min(tokens_of_tile, num_new[row] - first)
            token, position = starts[row] + first, lengths[row] - num_new[row] + first
            used = count * heads
            blocks = (used + height - 1) // height
            for r in range(blocks * height):
                for d in range(dim):
                    value = np.float32(0.0)
                    if r < used:
                        number = qkv[token + r // heads, head * heads + r % heads, d]
                        value = (widen(number) if bf16 else number) * scale
                    queries[r // height, d, r % height] = value
                for d in range(width):
                    totals[r, d] = np.float32(0.0)
                largest[r], share[r] = least, np.float32(0.0)
            begin = max(0, position + 1 - window) if window > 0 else 0
            end = position + count
            for chunk in range(begin, end, keys_at_once):
                known = min(keys_at_once, end - chunk)
                filled = (known + panel - 1) // panel * panel
                for j in range(filled):
                    if j < known:
                        home, offset = tables[row, (chunk + j) // size], (chunk + j) % size * dim
                        for d in range(dim):
                            number = k_cache[home, head, offset + d]
                            turned[j // panel, d, j % panel] = widen(number) if bf16 else number
                        for d in range(dim):
                            number = v_cache[home, head, offset + d]
                            values[d // panel, j, d % panel] = widen(number) if bf16 else number
                        for d in range(dim, width):
                            values[d // panel, j, d % panel] = np.float32(0.0)
                    else:
                        for d in range(dim):
                            turned[j // panel, d, j % panel] = np.float32(0.0)
                        for d in range(width):
                            values[d // panel, j, d % panel] = np.float32(0.0)
                for b in range(blocks):
                    if position + min(count - 1, (b * height + height - 1) // heads) < chunk:
                        continue
                    for p in range(filled // panel):
                        multiply_panel(
                            queries_at + b * dim * height * 4, turned_at + p * dim * panel * 4, dim, sums_at, height, by_dim, plain
                        )
                        for r in range(height):
                            for j in range(panel):
                                scores[r, p * panel + j] = sums[r, j]
                    for r in range(height):
                        at = position + min(count - 1, (b * height + r) // heads)
                        low = max(0, at + 1 - window - chunk) if window > 0 else 0
                        high = min(known, at + 1 - chunk)
                        most = largest[b * height + r]
                        for j in range(low, high):
                            most = max(most, scores[r, j])
                        total = np.float32(0.0)
                        for j in range(filled):
                            e = exponential(min(scores[r, j] - most, np.float32(0.0)))
                            e = e if low <= j < high else np.float32(0.0)
                            scores[r, j] = e
                            total += e
                        for j in range(filled):
                            weights[j, r] = scores[r, j]
                        kept = exponential(largest[b * height + r] - most)
                        largest[b * height + r] = most
                        share[b * height + r] = share[b * height + r] * kept + total
                        for d in range(width):
                            totals[b * height + r, d] *= kept
                    for p in range(panels):
                        multiply_panel(weights_at, values_at + p * keys_at_once * panel * 4, filled, sums_at, height, 2, plain)
                        for r in range(height):
                            for d in range(panel):
                                totals[b * height + r, p * panel + d] += sums[r, d]
            for r in range(used):
                inverse = np.float32(1.0) / share[r]
                for d in range(dim):
                    value = totals[r, d] * inverse
                    out[token + r // heads, head * heads + r % heads, d] = narrow(value) if bf16 else value
            item = fetch_add(a[COUNTERS], 1)

        decode_parts(address, me, mine, dim, heads, kv_heads, size, is_bf16)
        split = a[SPLIT]
        if split > 1:
            barrier()
            merge_parts(address, me, mine, dim, heads, kv_heads, bf16)

    return run
