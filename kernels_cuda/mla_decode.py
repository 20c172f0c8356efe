"""Launcher of src/mla_decode.cu. The plan of a step is paged_decode.plan_decode's, with head_blocks of this module."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from kernels_cuda.kernel import Defines, Source, defines, dtype_macro, require
from kernels_cuda.launch import launch
from kernels_cuda.paged_decode import RESERVED_SHARED

LATENT, ROPE = 512, 64
WIDTH = LATENT + ROPE  # numbers of a cached token
PAGE = 16  # a block size must be a multiple of it
TILE = 32
# Query heads of a block -> its warps. 64 heads need 152 KB of shared memory (8.0, 9.0, 10.x); 16 need 93, which every GPU has.
WARPS = {16: 4, 64: 8}
MOST_SHARED = 227 << 10  # of a block on Hopper
DTYPES = ("BF16", "FP16")


@cache
def _variant(head_tile: int, dtype: str) -> Defines:
    return defines(HEAD_DIM=LATENT, HEAD_TILE=head_tile, WARPS=WARPS[head_tile], **{f"DTYPE_{dtype}": 1})


SOURCE = Source(
    "mla_decode.cu",
    tuple(_variant(tile, dtype) for tile in WARPS for dtype in DTYPES),
    {"mla_decode": 208, "merge_mla": 64},
    # Shared memory has room for two blocks of 16 heads (128 threads) or one of 64 (256 threads): both may take up to 255.
    {_variant(64, dtype): {"mla_decode": 255, "merge_mla": 64} for dtype in DTYPES},
)


def head_tile(heads: int, shared_limit: int = MOST_SHARED) -> int:
    """Query heads of one block. shared_limit: shared memory that a block may have (cudaDevAttrMaxSharedMemoryPerBlockOptin)."""
    return 64 if heads > 16 and shared_bytes(64) <= shared_limit else 16


def head_blocks(heads: int, shared_limit: int = MOST_SHARED) -> int:
    """Grid blocks per work item."""
    return -(-heads // head_tile(heads, shared_limit))


def shared_bytes(tile: int) -> int:
    """Dynamic shared memory of a block: its queries, two tiles of the cache, probabilities, and a number per warp and head."""
    pitch, probability_pitch = (WIDTH * 2 // 16 | 1) * 16, (TILE * 2 // 16 | 1) * 16
    slices = WARPS[tile] * 16 // tile
    return (tile + 2 * TILE) * pitch + tile * probability_pitch + slices * tile * 4


def resident_blocks(multiprocessors: int, shared_memory: int, heads: int, shared_limit: int = MOST_SHARED) -> int:
    """How many blocks a GPU runs at once: as shared_memory (bytes) of each multiprocessor allows; registers have room for two."""
    here = shared_memory // (shared_bytes(head_tile(heads, shared_limit)) + RESERVED_SHARED)
    return multiprocessors * max(1, min(2, here))


def mla_attention(
    q_latent: Any,
    q_rope: Any,
    cache: Any,
    block_tables: Any,
    work: Any,
    merges: Any,
    partial_out: Any,
    partial_lse: Any,
    out: Any,
    scale: float,
    shared_limit: int = MOST_SHARED,
) -> None:
    """out[query] = attention from (q_latent, q_rope)[query] over the cached tokens that the plan names, in the latent's space.

    q_latent [queries, heads, 512], q_rope [queries, heads, 64]: views are fine as long as a head's numbers lie side by side and begin at
    multiples of 16 bytes. cache [blocks, block_size, 576] of the same dtype: a token's latent, then its rotated part. out [queries, heads,
    512], contiguous. The rest is decode_attention's, with 512 in the place of head_dim. scale multiplies q k: it is that of the heads
    before the weights were absorbed, not 512 ** -0.5. Raises UnsupportedShape.
    """
    queries, heads, latent = q_latent.shape
    _, block_size, width = cache.shape
    require(latent == LATENT and width == WIDTH, f"latent attention of {latent} and {width}; there is a kernel for {LATENT} and {WIDTH}")
    require(tuple(q_rope.shape) == (queries, heads, ROPE), f"q_rope {tuple(q_rope.shape)} for q_latent {tuple(q_latent.shape)}")
    require(tuple(out.shape) == (queries, heads, LATENT) and out.is_contiguous(), "out must be contiguous, [queries, heads, 512]")
    require(q_latent.dtype == q_rope.dtype == cache.dtype == out.dtype, "q_latent, q_rope, cache and out must be of one dtype")
    require(
        cache.is_contiguous() and block_size % PAGE == 0,
        f"the cache must be contiguous and its block size {block_size} a multiple of {PAGE}",
    )
    for name, q in (("q_latent", q_latent), ("q_rope", q_rope)):
        require(
            q.stride(2) == 1 and q.stride(0) % 8 == 0 and q.stride(1) % 8 == 0 and q.data_ptr() % 16 == 0,
            f"{name}: heads must begin at multiples of 16 bytes",
        )
    for name, array in (("work", work), ("merges", merges), ("block_tables", block_tables)):
        require(str(array.dtype) == "torch.int32" and array.is_contiguous(), f"{name} must be contiguous int32")
    items, requests = len(work), len(merges)
    require(
        partial_out.numel() >= items * heads * LATENT and partial_lse.numel() >= items * heads, f"scratch is too small for {items} items"
    )
    tile = head_tile(heads, shared_limit)
    variant = _variant(tile, dtype_macro(q_latent.dtype, "q_latent"))
    if items:
        launch(
            SOURCE.kernel("mla_decode", variant), (items, -(-heads // tile)), (WARPS[tile] * 32,), shared_bytes(tile),
            *(t.data_ptr() for t in (q_latent, q_rope, cache, block_tables, work, partial_out, partial_lse)),
            *map(np.int32, (q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1))),
            *map(np.int32, (block_tables.shape[1], heads, block_size)), np.float32(scale),
        )  # fmt: skip
    if requests:
        launch(
            SOURCE.kernel("merge_mla", variant), (-(-requests * heads // 4),), (128,), 0,
            *(t.data_ptr() for t in (partial_out, partial_lse, merges, out)), np.int32(heads), np.int32(requests * heads),
        )  # fmt: skip
