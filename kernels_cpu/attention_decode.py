"""Attention of rows with one new token, in vectors; inlined into the kernel."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from kernels_cpu.attention_ends import LEAST
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
    TOKENS,
    V_CACHE,
    WINDOW,
)
from kernels_cpu.attention_vectors import add_values, score_keys
from kernels_cpu.linear_vectors import fetch_add
from kernels_cpu.native import as_float, ask_for, exponential, narrow, pointer, widen

# Blocks that are asked for before they are needed.
AHEAD = 4


@njit(inline="always")
def decode_parts(address, me, mine, dim, heads, kv_heads, size, bf16):  # type: ignore[no-untyped-def]
    """A row's one query against some of its keys, all scores first; this thread takes parts as long as there are any.

    Results go into OUT or, of rows of several parts, into PARTIALS. Arguments as in attention_ends.py.
    """
    a = carray(address, (NUM_ARGUMENTS,), np.int64)
    threads, tokens, rows, window = a[THREADS], a[TOKENS], a[ROWS], a[WINDOW]
    dtype = np.uint16 if bf16 else np.float32
    block_bytes = size * dim * (2 if bf16 else 4)
    lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
    starts = carray(pointer(a[STARTS]), (rows + 1,), np.int64)
    tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
    qkv = carray(pointer(a[QKV]), (tokens, (heads + 2) * kv_heads, dim), dtype)
    out = carray(pointer(a[OUT]), (tokens, kv_heads * heads, dim), dtype)
    scale = as_float(np.uint32(a[SCALE_BITS]))
    split, decoding = a[SPLIT], a[DECODING]
    decode_row = carray(pointer(a[DECODE_ROW]), (decoding,), np.int64)
    part_first = carray(pointer(a[PART_FIRST]), (decoding * split,), np.int64)
    part_end = carray(pointer(a[PART_END]), (decoding * split,), np.int64)
    items = decoding * split * kv_heads
    portion = max(1, items // (threads * 64))
    query_at = mine
    total_at = query_at + heads * dim * 4
    part_scores_at = total_at + heads * dim * 4
    query = carray(pointer(query_at), (heads * dim,), np.float32)
    sum_of = carray(pointer(total_at), (heads * dim,), np.float32)
    row_scores = carray(pointer(part_scores_at), (1,), np.float32)
    partials = carray(pointer(a[PARTIALS]), (items, heads, dim + 2), np.float32)
    start = fetch_add(a[COUNTERS] + 8, portion)
    while start < items:
        for item in range(start, min(start + portion, items)):
            part, head = item // kv_heads, item % kv_heads
            row = decode_row[part // split]
            token, length = starts[row], lengths[row]
            begin = max(part_first[part], length - window) if window > 0 else part_first[part]
            end = max(begin, part_end[part])
            for g in range(heads):
                for d in range(dim):
                    number = qkv[token, head * heads + g, d]
                    query[g * dim + d] = (widen(number) if bf16 else number) * scale
                    sum_of[g * dim + d] = np.float32(0.0)
            first, last = begin // size, (end + size - 1) // size
            if begin == end:
                last = first
            stride = (last - first) * size
            for b in range(first, last):
                if b + AHEAD < last:
                    ask_for(a[K_CACHE] + (np.int64(tables[row, b + AHEAD]) * kv_heads + head) * block_bytes, block_bytes)
                elif b + AHEAD - last < last - first:
                    # Values come after the last keys.
                    ask_for(a[V_CACHE] + (np.int64(tables[row, first + b + AHEAD - last]) * kv_heads + head) * block_bytes, block_bytes)
                keys = a[K_CACHE] + (np.int64(tables[row, b]) * kv_heads + head) * block_bytes
                score_keys(query_at, keys, part_scores_at + (b - first) * size * 4, stride, dim, heads, size, bf16)
            low, high = begin - first * size, end - first * size
            for g in range(heads):
                most = LEAST
                for j in range(low, high):
                    most = max(most, row_scores[g * stride + j])
                weight = np.float32(0.0)
                for j in range(low, high):
                    e = exponential(row_scores[g * stride + j] - most)
                    row_scores[g * stride + j] = e
                    weight += e
                if split > 1:
                    partials[item, g, dim] = most
                    partials[item, g, dim + 1] = weight
                else:
                    inverse = np.float32(1.0) / weight
                    for j in range(low, high):
                        row_scores[g * stride + j] *= inverse
            for b in range(first, last):
                if b + AHEAD < last:
                    ask_for(a[V_CACHE] + (np.int64(tables[row, b + AHEAD]) * kv_heads + head) * block_bytes, block_bytes)
                elif item + 1 < min(start + portion, items):
                    # Then the keys of the next piece.
                    beyond, behind = (item + 1) // kv_heads, (item + 1) % kv_heads
                    place = part_first[beyond] // size + b + AHEAD - last
                    if place * size < part_end[beyond]:
                        next_row = decode_row[beyond // split]
                        ask_for(a[K_CACHE] + (np.int64(tables[next_row, place]) * kv_heads + behind) * block_bytes, block_bytes)
                block_at = a[V_CACHE] + (np.int64(tables[row, b]) * kv_heads + head) * block_bytes
                at = (b - first) * size
                add_values(part_scores_at + at * 4, stride, block_at, total_at, max(low - at, 0), min(high - at, size), dim, heads, bf16)
            if split > 1:
                for g in range(heads):
                    for d in range(dim):
                        partials[item, g, d] = sum_of[g * dim + d]
            else:
                for g in range(heads):
                    for d in range(dim):
                        value = sum_of[g * dim + d]
                        out[token, head * heads + g, d] = narrow(value) if bf16 else value
        start = fetch_add(a[COUNTERS] + 8, portion)
