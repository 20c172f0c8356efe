"""How every attention kernel on the CPU begins and ends: keys and values into the cache, parts of a row put together.

Inlined into the kernels. `address` is that of the kernel's arguments (attention_layout.py), `mine` that of this thread's scratch memory;
sizes must be constants where it is called.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from kernels_cpu.attention_layout import (
    ANGLES,
    DECODE_ROW,
    DECODING,
    EPS_BITS,
    HALF,
    K_CACHE,
    K_NORM,
    NUM_ARGUMENTS,
    NUM_BLOCKS,
    OUT,
    PARTIALS,
    POSITIONS,
    Q_NORM,
    QKV,
    ROWS,
    SLOTS,
    SPLIT,
    STARTS,
    THREADS,
    TOKENS,
    V_CACHE,
)
from kernels_cpu.attention_vectors import narrow_row, norm_row, rotate_row, widen_row
from kernels_cpu.native import as_float, exponential, narrow, pointer

LEAST = np.float32(-1e30)


@njit(inline="always")
def store_keys_values(address, me, mine, dim, heads, kv_heads, size, bf16):  # type: ignore[no-untyped-def]
    """Norm and turn this thread's share of the queries and keys; keys and values go into the cache, queries back to where they were."""
    a = carray(address, (NUM_ARGUMENTS,), np.int64)
    dtype, number = (np.uint16, 2) if bf16 else (np.float32, 4)
    threads, tokens, half = a[THREADS], a[TOKENS], a[HALF]
    turning = (heads + 1) * kv_heads
    qkv = carray(pointer(a[QKV]), (tokens, (heads + 2) * kv_heads, dim), dtype)
    v_cache = carray(pointer(a[V_CACHE]), (a[NUM_BLOCKS], kv_heads, size * dim), dtype)
    positions = carray(pointer(a[POSITIONS]), (tokens,), np.int64)
    slots = carray(pointer(a[SLOTS]), (tokens,), np.int64)
    angles = carray(pointer(a[ANGLES]), (1,), np.float32)
    numbers = carray(pointer(mine), (dim,), np.float32)
    eps = as_float(np.uint32(a[EPS_BITS]))
    for t in range(tokens * me // threads, tokens * (me + 1) // threads):
        home, offset, angle = slots[t] // size, slots[t] % size * dim, positions[t] * 2 * half
        for h in range(turning):
            here = a[QKV] + (t * (turning + kv_heads) + h) * dim * number
            widen_row(here, mine, dim, bf16)
            if a[Q_NORM] != 0:
                norm_row(mine, a[Q_NORM] if h < turning - kv_heads else a[K_NORM], eps, dim, bf16)
            if half % 8 == 0:
                rotate_row(mine, a[ANGLES] + angle * 4, half)
            else:
                for d in range(half):
                    low, high, cosine, sine = numbers[d], numbers[half + d], angles[angle + d], angles[angle + half + d]
                    numbers[d] = low * cosine - high * sine
                    numbers[half + d] = high * cosine + low * sine
            if h >= turning - kv_heads:
                here = a[K_CACHE] + ((home * kv_heads + h - (turning - kv_heads)) * size * dim + offset) * number
            narrow_row(mine, here, dim, bf16)
        for h in range(kv_heads):
            for d in range(dim):
                v_cache[home, h, offset + d] = qkv[t, turning + h, d]


@njit(inline="always")
def merge_parts(address, me, mine, dim, heads, kv_heads, bf16):  # type: ignore[no-untyped-def]
    """This thread's share of the decoding rows, whose parts' sums, largest scores and weights stand in PARTIALS."""
    a = carray(address, (NUM_ARGUMENTS,), np.int64)
    dtype = np.uint16 if bf16 else np.float32
    split, decoding = a[SPLIT], a[DECODING]
    decode_row = carray(pointer(a[DECODE_ROW]), (decoding,), np.int64)
    starts = carray(pointer(a[STARTS]), (a[ROWS] + 1,), np.int64)
    partials = carray(pointer(a[PARTIALS]), (decoding * split * kv_heads, heads, dim + 2), np.float32)
    out = carray(pointer(a[OUT]), (a[TOKENS], kv_heads * heads, dim), dtype)
    sum_of = carray(pointer(mine), (dim,), np.float32)
    for unit in range(me, decoding * kv_heads, a[THREADS]):
        place, head = unit // kv_heads, unit % kv_heads
        token = starts[decode_row[place]]
        for g in range(heads):
            most = LEAST
            for s in range(split):
                most = max(most, partials[(place * split + s) * kv_heads + head, g, dim])
            weight = np.float32(0.0)
            for d in range(dim):
                sum_of[d] = np.float32(0.0)
            for s in range(split):
                item = (place * split + s) * kv_heads + head
                factor = exponential(partials[item, g, dim] - most)
                weight += factor * partials[item, g, dim + 1]
                for d in range(dim):
                    sum_of[d] += factor * partials[item, g, d]
            inverse = np.float32(1.0) / weight
            for d in range(dim):
                value = sum_of[d] * inverse
                out[token, head * heads + g, d] = narrow(value) if bf16 else value
