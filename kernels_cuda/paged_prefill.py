"""Launcher of src/paged_prefill.cu, and the host's plan of it: which block attends for which rows of which chunk, the longest first."""

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
PAGE = 16  # a block size must be a multiple of it
WARPS = 8
ROWS = WARPS * 16  # (token, head) pairs of one block
# Per thread, by head size. 128 keeps two blocks on an SM, up to 255 one; below that a budget only shows that a change cost registers.
REGISTERS = {32: 128, 64: 128, 80: 200, 96: 216, 128: 232, 256: 255}
LOG2E = 1.4426950408889634


@cache
def _variant(head_dim: int, fp8: int, dtype: str) -> Defines:
    kv_tile, stages, blocks = geometry(head_dim)
    return defines(
        HEAD_DIM=head_dim, FP8_CACHE=fp8, KV_TILE=kv_tile, WARPS=WARPS, STAGES=stages, MIN_BLOCKS=blocks, **{f"DTYPE_{dtype}": 1}
    )


def geometry(head_dim: int) -> tuple[int, int, int]:
    """Tokens of one tile of K and V, tiles in shared memory, blocks per SM: what registers have room for (128 per thread for two blocks,
    255 for one), and at most 70 KB of shared memory per block, which every GPU has."""
    return {32: (32, 3, 2), 64: (32, 3, 2), 256: (16, 4, 1)}.get(head_dim, (64, 2, 1))


SOURCE = Source(
    "paged_prefill.cu",
    tuple(_variant(d, fp8, dtype) for d in HEAD_DIMS for fp8 in (0, 1) for dtype in ("BF16", "FP16")),
    {"paged_prefill": 255},
    {_variant(d, fp8, dtype): {"paged_prefill": n} for d, n in REGISTERS.items() for fp8 in (0, 1) for dtype in ("BF16", "FP16")},
)


@dataclass(frozen=True)
class PrefillPlan:
    """work int32[items, 2]: (chunk, tile), the costliest first, padded with (-1, 0); chunks int32[n, 4]: (first query, new tokens, past,
    row of the block table)."""

    work: I32
    chunks: I32


def plan_prefill(num_new: I32, past: I32, queries: I32, rows: I32, group: int, window: int = 0, pad_items: int = 0) -> PrefillPlan:
    """A work item for every ROWS (token, head of a KV head's group) pairs of every chunk.

    num_new, past, queries, rows int32[n]: a chunk's new tokens (0: nothing to do), the position of the first of them, its place in q and
    out, its row of the block table. group: query heads per KV head. window: as in prefill_attention. pad_items: the length of work, or 0
    for as long as needed. Raises UnsupportedShape when there are more.

    Items are ordered by the K and V they read, most first (Graham's LPT rule, doi:10.1137/0117039): blocks start in this order, so
    the machine does not wait for one long item in the end. Ties keep the order of the chunks: the plan is a function of its arguments.
    """
    total = num_new.astype(np.int64) * group
    counts = -(-total // ROWS)
    ends = np.cumsum(counts)
    items = int(ends[-1]) if len(ends) else 0
    require(items <= pad_items or not pad_items, f"the step has {items} work items, its bucket {pad_items}")
    of = np.repeat(np.arange(len(total)), counts)
    tile = np.arange(items) - (ends - counts)[of]
    first = past[of] + tile * ROWS // group
    last = past[of] + (np.minimum((tile + 1) * ROWS, total[of]) - 1) // group
    cost = last + 1 - (np.maximum(first - window + 1, 0) if window else 0)
    order = np.argsort(-cost, kind="stable")
    work = np.zeros((pad_items or items, 2), np.int32)
    work[:items, 0], work[:items, 1] = of[order], tile[order]
    work[items:, 0] = -1
    return PrefillPlan(work, np.stack((queries, num_new, past, rows), axis=1).astype(np.int32))


def max_items(chunks: int, tokens: int, group: int) -> int:
    """The most work items of a plan of so many chunks with so many new tokens together."""
    return min(chunks, tokens) + tokens * group // ROWS


def shared_bytes(head_dim: int, kv_bytes: int) -> int:
    """Dynamic shared memory of a block: the stages of K and V."""
    kv_tile, stages, _ = geometry(head_dim)
    return stages * 2 * kv_tile * (head_dim * kv_bytes // 16 | 1) * 16


def prefill_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_tables: Any,
    work: Any,
    chunks: Any,
    out: Any,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Any | None = None,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
) -> None:
    """out[token] = causal attention of q[token], for every token of every chunk of the plan; K and V of the new tokens are cached already.

    q, out [tokens, heads, head_dim], bfloat16 or float16; k_cache, v_cache [blocks, kv_heads, block_size, head_dim] of the same dtype
    or float8_e4m3fn, then values stand for themselves times k_scale, v_scale float32 [kv_heads] (None: 1);
    block_tables int32 [rows, blocks_per_row]; work, chunks: the arrays of a PrefillPlan, made for this group and window, on the device.
    scale > 0 multiplies q k; window w > 0: a token sees itself and the w - 1 before it; soft_cap c > 0 makes each score
    c * tanh(score / c); sinks [heads] of q's dtype: a score per head without a value. Tokens of no chunk are left as they are.

    A token's bits depend on its position and its request's cache alone, not on the other chunks, nor on where prompts are cut.
    Raises UnsupportedShape.
    """
    head_dim, kv_heads, fp8 = q.shape[2], k_cache.shape[1], str(k_cache.dtype) == "torch.float8_e4m3fn"
    require(head_dim in HEAD_DIMS, f"head size {head_dim} has no CUDA prefill kernel; there are {', '.join(map(str, HEAD_DIMS))}")
    scalars = checked_scalars(q, k_cache, v_cache, block_tables, work, chunks, out, scale, window, soft_cap, sinks)
    kernel = SOURCE.kernel("paged_prefill", _variant(head_dim, int(fp8), dtype_macro(q.dtype, "q")))
    if not len(work):
        return
    pointers = (q, k_cache, v_cache, block_tables, work, chunks, sinks, out, k_scale, v_scale)
    launch(
        kernel, (len(work) * kv_heads,), (WARPS * 32,), shared_bytes(head_dim, 1 if fp8 else 2),
        *(0 if t is None else t.data_ptr() for t in pointers), *scalars,
    )  # fmt: skip


def checked_scalars(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_tables: Any,
    work: Any,
    chunks: Any,
    out: Any,
    scale: float,
    window: int,
    soft_cap: float,
    sinks: Any | None,
) -> tuple[np.int32 | np.float32, ...]:
    """The scalars that end a prefill kernel's arguments, for arguments of prefill_attention that every such kernel can take.

    Raises UnsupportedShape for others.
    """
    heads, head_dim = q.shape[1:]
    _, kv_heads, block_size, _ = k_cache.shape
    _check_tensors(q, k_cache, v_cache, out)
    require(heads % kv_heads == 0, f"{heads} query heads are not a multiple of {kv_heads} KV heads")
    require(block_size % PAGE == 0, f"block size {block_size} is not a multiple of {PAGE}")
    require(q.numel() // head_dim < 2**31 and block_tables.numel() < 2**31, "q or block_tables are too large for 32-bit indices")
    require(scale > 0 and window >= 0 and soft_cap >= 0, f"scale {scale}, window {window}, soft cap {soft_cap}")
    require(sinks is None or (sinks.dtype == q.dtype and sinks.numel() == heads), "sinks must be one per head, of q's dtype")
    for name, array in (("work", work), ("chunks", chunks), ("block_tables", block_tables)):
        require(str(array.dtype) == "torch.int32" and array.is_contiguous(), f"{name} must be contiguous int32")
    shape = (block_tables.shape[1], kv_heads, heads // kv_heads, block_size, window)
    return *map(np.int32, shape), *map(np.float32, _score(scale, soft_cap))


def _score(scale: float, soft_cap: float) -> tuple[float, float, float]:
    """factor, cap and cap_rate of the kernel: here rather than there, where each would take a register."""
    if soft_cap > 0:
        return 1.0, soft_cap * LOG2E, 2.0 * scale * LOG2E / soft_cap
    return scale * LOG2E, 0.0, 0.0


def _check_tensors(q: Any, k_cache: Any, v_cache: Any, out: Any) -> None:
    head_dim = q.shape[2]
    require(k_cache.shape == v_cache.shape and k_cache.shape[3] == head_dim, f"caches {tuple(k_cache.shape)} for heads of {head_dim}")
    require(
        k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.dtype == v_cache.dtype, "KV caches must be contiguous and alike"
    )
    fp8 = str(k_cache.dtype) == "torch.float8_e4m3fn"
    require(fp8 or k_cache.dtype == q.dtype, f"a KV cache of {k_cache.dtype} for q of {q.dtype}; it may be the same or float8_e4m3fn")
    require(
        out.is_contiguous() and q.is_contiguous() and out.dtype == q.dtype and out.shape == q.shape,
        "q and out must be contiguous, of one dtype and one shape",
    )
