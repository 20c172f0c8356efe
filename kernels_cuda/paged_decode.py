"""Launcher of src/paged_decode.cu, and the host's plan of a decode step: which block attends over which part of which request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels_cuda.kernel import Defines, Source, defines, dtype_macro, require
from kernels_cuda.launch import launch

I32 = npt.NDArray[np.int32]

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
TILE = 16  # tokens; a block size must be a multiple of it
HEADS_PER_BLOCK = 8
SPLIT_STEP = 64  # split sizes are multiples of what the warps of a block take in one turn
MIN_SPLIT = 128  # below this a block's start and its merge cost more than the tokens
FIXED_SPLIT = 512  # of the batch-invariant mode, or more where a request could have more of them than MOST_SPLITS
MOST_SPLITS = 16  # with 8 KV heads, one request of full length still fills a large GPU
REGISTERS = 1 << 16  # of a multiprocessor
RESERVED_SHARED = 1 << 10  # bytes of a block's shared memory that are the driver's


@cache
def _variant(head_dim: int, fp8: int, dtype: str) -> Defines:
    warps, stages = geometry(head_dim, 1 if fp8 else 2)
    return defines(HEAD_DIM=head_dim, FP8_CACHE=fp8, WARPS=warps, STAGES=stages, **{f"DTYPE_{dtype}": 1})


def geometry(head_dim: int, kv_bytes: int) -> tuple[int, int]:
    """Warps of a block and stages of each warp's ring: 40-80 KB of shared memory, so that it fits every GPU and twice on the large ones."""
    row = head_dim * kv_bytes
    return (2 if row > 256 else 4), (4 if row <= 128 else 3 if row <= 192 else 2)


SOURCE = Source(
    "paged_decode.cu",
    tuple(_variant(d, fp8, dtype) for d in HEAD_DIMS for fp8 in (0, 1) for dtype in ("BF16", "FP16")),
    # Two blocks of 128 threads per SM need no more than 255; the budgets keep three, where shared memory has room for three.
    {"paged_decode": 168, "merge_splits": 64},
    {_variant(256, fp8, dtype): {"paged_decode": 255, "merge_splits": 64} for fp8 in (0, 1) for dtype in ("BF16", "FP16")},
)


@dataclass(frozen=True)
class DecodePlan:
    """work int32[items, 4]: (query, begin, end, row); merges int32[requests, 4]: (first item, end item, query, 0). Padded with items that
    do nothing: a grid of fixed size serves every step of a captured graph."""

    work: I32
    merges: I32


def plan_decode(
    seq_lens: I32,
    rows: I32,
    queries: I32,
    blocks_per_token: int,
    resident_blocks: int,
    window: int = 0,
    fixed_split: int = 0,
    pad_items: int = 0,
    pad_requests: int = 0,
) -> DecodePlan:
    """Split requests over blocks so that they are about equal and about fill the GPU.

    seq_lens, rows, queries int32[n]: tokens to attend over (the new one included), the row of the block table, the row of q and out.
    blocks_per_token: grid blocks per work item, `head_blocks(kv_heads, group)`. resident_blocks: how many blocks the GPU runs at once.
    window: only the last so many tokens are seen, 0 all. fixed_split: cut every so many tokens whatever the batch is: results are
    then bit-equal alone and in any company. pad_items, pad_requests: lengths to pad to. Raises UnsupportedShape if there are more.
    """
    end = seq_lens.astype(np.int64)
    begin = np.maximum(0, end - window) if window else np.zeros_like(end)
    split = fixed_split or _split_size(int((end - begin).sum()), blocks_per_token, resident_blocks)
    require(split > 0 and split % TILE == 0, f"split size {split} is not a multiple of {TILE}")
    first = begin // split
    counts = np.where(end > begin, -(-end // split) - first, 0)
    ends = np.cumsum(counts)
    items, requests = int(ends[-1]) if len(ends) else 0, len(end)
    require(items <= pad_items or not pad_items, f"the step has {items} work items, its bucket {pad_items}")
    require(requests <= pad_requests or not pad_requests, f"the step has {requests} requests, its bucket {pad_requests}")
    of = np.repeat(np.arange(requests), counts)
    at = (np.arange(items) - (ends - counts)[of] + first[of]) * split
    work = np.zeros((pad_items or items, 4), np.int32)
    work[:items, 0], work[:items, 3] = queries[of], rows[of]
    work[:items, 1], work[:items, 2] = np.maximum(at, begin[of]), np.minimum(at + split, end[of])
    merges = np.zeros((pad_requests or requests, 4), np.int32)
    merges[:requests, 0], merges[:requests, 1], merges[:requests, 2] = ends - counts, ends, queries
    merges[requests:, 2] = -1
    return DecodePlan(work, merges)


def fixed_split(longest: int) -> int:
    """Split size of the batch-invariant mode for requests of up to `longest` tokens: with it, rows alone bound a step's work items."""
    return max(FIXED_SPLIT, -(-longest // (MOST_SPLITS * SPLIT_STEP)) * SPLIT_STEP)


def _split_size(tokens: int, blocks_per_token: int, resident_blocks: int) -> int:
    """Each resident block gets an equal share of the tokens: long requests are cut, requests shorter than a share stay whole."""
    share = -(-tokens * blocks_per_token // max(1, resident_blocks))
    return max(MIN_SPLIT, -(-share // SPLIT_STEP) * SPLIT_STEP)


def max_items(requests: int, blocks_per_token: int, resident_blocks: int, max_tokens: int = 0, fixed_split: int = 0) -> int:
    """The most work items a plan of so many requests can have. max_tokens: of all requests together; only a fixed split needs it."""
    if fixed_split:
        return 2 * requests + max_tokens // fixed_split
    return 2 * requests + resident_blocks // blocks_per_token + 1


def head_blocks(kv_heads: int, group: int) -> int:
    """Grid blocks per work item."""
    return kv_heads * -(-group // HEADS_PER_BLOCK)


def shared_bytes(head_dim: int, kv_bytes: int) -> int:
    """Dynamic shared memory of a block: the warps' rings, or afterwards their results."""
    warps, stages = geometry(head_dim, kv_bytes)
    pitch = (head_dim * kv_bytes // 16 | 1) * 16
    return max(warps * stages * 2 * TILE * pitch, warps * HEADS_PER_BLOCK * (head_dim + 4 + 2) * 4)


def resident_blocks(multiprocessors: int, shared_memory: int, head_dim: int, kv_bytes: int) -> int:
    """How many blocks a GPU runs at once: as registers and shared_memory (bytes) of each multiprocessor allow."""
    warps, _ = geometry(head_dim, kv_bytes)
    registers = SOURCE.budget("paged_decode", _variant(head_dim, int(kv_bytes == 1), "BF16"))
    by_registers = REGISTERS // (registers * warps * 32)
    by_shared_memory = shared_memory // (shared_bytes(head_dim, kv_bytes) + RESERVED_SHARED)
    return multiprocessors * max(1, min(by_registers, by_shared_memory))


def decode_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_tables: Any,
    work: Any,
    merges: Any,
    partial_out: Any,
    partial_lse: Any,
    out: Any,
    scale: float,
    soft_cap: float = 0.0,
    sinks: Any | None = None,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
) -> None:
    """out[query] = attention from q[query] over the cached tokens that the plan names.

    q, out [queries, heads, head_dim]; k_cache, v_cache [blocks, kv_heads, block_size, head_dim] of q's dtype or float8_e4m3fn, then
    values stand for themselves times k_scale, v_scale float32 [kv_heads] (None: 1). block_tables int32 [rows, blocks_per_row].
    work, merges: the arrays of a DecodePlan on the device. partial_out float32 [>= items, heads, head_dim], partial_lse float32
    [>= items, heads]: scratch. scale multiplies q k; soft_cap c > 0 makes each score c * tanh(score / c); sinks [heads] of q's dtype: a
    score per head without a value. Raises UnsupportedShape.
    """
    kernel, kv_bytes = _kernel(q, k_cache, v_cache)
    heads, head_dim = q.shape[1:]
    _, kv_heads, block_size, _ = k_cache.shape
    require(heads % kv_heads == 0, f"{heads} query heads are not a multiple of {kv_heads} KV heads")
    require(block_size % TILE == 0, f"block size {block_size} is not a multiple of {TILE}")
    require(out.is_contiguous() and q.is_contiguous() and out.dtype == q.dtype, "q and out must be contiguous and of one dtype")
    items, requests = len(work), len(merges)
    require(
        partial_out.numel() >= items * heads * head_dim and partial_lse.numel() >= items * heads, f"scratch is too small for {items} items"
    )
    for name, array in (("work", work), ("merges", merges), ("block_tables", block_tables)):
        require(str(array.dtype) == "torch.int32" and array.is_contiguous(), f"{name} must be contiguous int32")
    group = heads // kv_heads
    if items:
        pointers = (q, k_cache, v_cache, block_tables, work, partial_out, partial_lse, k_scale, v_scale)
        launch(
            SOURCE.kernel("paged_decode", kernel), (items, head_blocks(kv_heads, group)), (geometry(head_dim, kv_bytes)[0] * 32,),
            shared_bytes(head_dim, kv_bytes), *(0 if t is None else t.data_ptr() for t in pointers),
            *map(np.int32, (block_tables.shape[1], kv_heads, group, block_size)), np.float32(scale), np.float32(soft_cap),
        )  # fmt: skip
    if requests:
        require(sinks is None or (sinks.dtype == q.dtype and sinks.numel() == heads), "sinks must be one per head, of q's dtype")
        merged = (partial_out, partial_lse, merges, sinks, out)
        launch(
            SOURCE.kernel("merge_splits", kernel), (-(-requests * heads // 4),), (128,), 0,
            *(0 if t is None else t.data_ptr() for t in merged), np.int32(heads), np.int32(requests * heads),
        )  # fmt: skip


def _kernel(q: Any, k_cache: Any, v_cache: Any) -> tuple[Defines, int]:
    head_dim = q.shape[2]
    require(head_dim in HEAD_DIMS, f"head size {head_dim} has no CUDA decode kernel; there are {', '.join(map(str, HEAD_DIMS))}")
    require(k_cache.shape == v_cache.shape and k_cache.shape[3] == head_dim, f"caches {tuple(k_cache.shape)} for heads of {head_dim}")
    require(
        k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.dtype == v_cache.dtype, "KV caches must be contiguous and alike"
    )
    fp8 = str(k_cache.dtype) == "torch.float8_e4m3fn"
    require(fp8 or k_cache.dtype == q.dtype, f"a KV cache of {k_cache.dtype} for q of {q.dtype}; it may be the same or float8_e4m3fn")
    return _variant(head_dim, int(fp8), dtype_macro(q.dtype, "q")), 1 if fp8 else 2
