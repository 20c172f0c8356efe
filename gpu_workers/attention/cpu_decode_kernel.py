"""The numba source of decode attention (cpu_decode.py says what it computes). Imported only by the thread that compiles it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc

from gpu_workers.attention.cpu_decode import (
    BOUNDS,
    K_CACHE,
    K_STRIDE,
    LENGTHS,
    NUM_ARGUMENTS,
    NUM_BLOCKS,
    OUT,
    Q_STRIDE,
    ROWS,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_WIDTH,
    TABLE_WIDTH,
    TABLES,
    TOKENS,
    V_CACHE,
    V_STRIDE,
    WINDOW,
    K,
    Q,
    V,
)
from gpu_workers.attention.cpu_decode_vectors import add_values, score_keys
from gpu_workers.device.cpu_native import as_float, exponential, narrow, pointer, signature, thread_number, widen


def compiled(head_dim: int, group: int, kv_heads: int, block_size: int, bf16: bool) -> Any:
    """The kernel for these sizes, from numba's cache if it was compiled on this machine before.

    The cache lies beside this file like a .pyc, or in the user's own cache directory where that is not writable.
    """
    try:
        return _compiled(head_dim, group, kv_heads, block_size, bf16, True)
    except RuntimeError:  # numba found no directory that it may write to
        return _compiled(head_dim, group, kv_heads, block_size, bf16, False)


def _compiled(head_dim: int, group: int, kv_heads: int, block_size: int, bf16: bool, cache: bool) -> Any:
    dim, size, heads = head_dim, block_size, group
    dtype = np.uint16 if bf16 else np.float32
    is_bf16 = int(bf16)
    block_bytes = size * dim * (2 if bf16 else 4)

    @cfunc(signature, nopython=True, cache=cache, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")
    def kernel(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        me = thread_number()
        rows, q_stride, k_stride, v_stride = a[ROWS], a[Q_STRIDE], a[K_STRIDE], a[V_STRIDE]
        lengths = carray(pointer(a[LENGTHS]), (rows,), np.int64)
        tokens = carray(pointer(a[TOKENS]), (rows,), np.int64)
        tables = carray(pointer(a[TABLES]), (rows, a[TABLE_WIDTH]), np.int32)
        bounds = carray(pointer(a[BOUNDS]), (me + 2,), np.int64)
        k_cache = carray(pointer(a[K_CACHE]), (a[NUM_BLOCKS], kv_heads, size * dim), dtype)
        v_cache = carray(pointer(a[V_CACHE]), (a[NUM_BLOCKS], kv_heads, size * dim), dtype)
        q_all = carray(pointer(a[Q]), (1,), dtype)
        k_all = carray(pointer(a[K]), (1,), dtype)
        v_all = carray(pointer(a[V]), (1,), dtype)
        out_all = carray(pointer(a[OUT]), (1,), dtype)
        scale = as_float(np.uint32(a[SCALE_BITS]))
        query_at = a[SCRATCH] + me * a[SCRATCH_WIDTH] * 4
        total_at = query_at + heads * dim * 4
        scores_at = total_at + heads * dim * 4
        query = carray(pointer(query_at), (heads * dim,), np.float32)
        total = carray(pointer(total_at), (heads * dim,), np.float32)
        scores = carray(pointer(scores_at), (1,), np.float32)
        for unit in range(bounds[me], bounds[me + 1]):
            row, head = unit // kv_heads, unit % kv_heads
            length, token = lengths[row], tokens[row]
            last = length - 1
            home = tables[row, last // size]
            offset = (last % size) * dim
            for d in range(dim):
                k_cache[home, head, offset + d] = k_all[token * k_stride + head * dim + d]
                v_cache[home, head, offset + d] = v_all[token * v_stride + head * dim + d]
            source = token * q_stride + head * heads * dim
            for i in range(heads * dim):
                query[i] = (widen(q_all[source + i]) if bf16 else q_all[source + i]) * scale
                total[i] = np.float32(0.0)
            begin = max(0, length - a[WINDOW]) if a[WINDOW] > 0 else 0
            first, end = begin // size, (length + size - 1) // size
            width = (end - first) * size
            for b in range(first, end):
                keys = a[K_CACHE] + (np.int64(tables[row, b]) * kv_heads + head) * block_bytes
                score_keys(query_at, keys, scores_at + (b - first) * size * 4, width, dim, heads, size, is_bf16)
            low, high = begin - first * size, length - first * size
            for g in range(heads):
                most = np.float32(-np.inf)
                for j in range(low, high):
                    most = max(most, scores[g * width + j])
                weight = np.float32(0.0)
                for j in range(low, high):
                    e = exponential(scores[g * width + j] - most)
                    scores[g * width + j] = e
                    weight += e
                inverse = np.float32(1.0) / weight
                for j in range(low, high):
                    scores[g * width + j] *= inverse
            for b in range(first, end):
                values = a[V_CACHE] + (np.int64(tables[row, b]) * kv_heads + head) * block_bytes
                at = (b - first) * size
                add_values(scores_at + at * 4, width, values, total_at, max(low - at, 0), min(high - at, size), dim, heads, is_bf16)
            target = (token * kv_heads + head) * heads * dim
            for i in range(heads * dim):
                out_all[target + i] = narrow(total[i]) if bf16 else total[i]

    return kernel
