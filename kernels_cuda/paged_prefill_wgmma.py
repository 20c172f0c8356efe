"""Launcher of src/paged_prefill_wgmma.cu: prefill attention as in paged_prefill.py, and from its plans, on Hopper (capability 9.0)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels_cuda import paged_prefill
from kernels_cuda.kernel import ARCHITECTURES_90A, Defines, Source, defines, dtype_macro, require
from kernels_cuda.launch import launch

HEAD_DIMS = (64, 128)
WARPGROUPS = 3  # one copies, each of the others has 64 rows
STAGES = {64: 4, 128: 2}  # tiles of K, and of V, in shared memory
TILE = 128  # tokens
ALIGNMENT = 1024  # of a tile, for the swizzle
# What three warpgroups start with of an SM's 65536; setmaxnreg then moves them: 56 for the one that copies, 224 for the others.
REGISTERS = 168

assert paged_prefill.ROWS == 64 * (WARPGROUPS - 1), "the plan is made for as many rows as a block has"


@cache
def _variant(head_dim: int, dtype: str) -> Defines:
    return defines(HEAD_DIM=head_dim, STAGES=STAGES[head_dim], **{f"DTYPE_{dtype}": 1})


SOURCE = Source(
    "paged_prefill_wgmma.cu",
    tuple(_variant(d, dtype) for d in HEAD_DIMS for dtype in ("BF16", "FP16")),
    {"paged_prefill_wgmma": REGISTERS},
    architectures=ARCHITECTURES_90A,
)


def obstacle(head_dim: int, cache_dtype: Any, architectures: Sequence[str]) -> str | None:
    """Why this kernel cannot be launched for these heads and this cache on a GPU that runs such cubins; None where it can."""
    if not set(architectures) & set(SOURCE.architectures):
        return f"it needs a GPU of compute capability 9.0 (Hopper); this one runs sm_{', sm_'.join(architectures)}"
    if head_dim not in HEAD_DIMS:
        return f"it has no variant for heads of {head_dim}; there are {', '.join(map(str, HEAD_DIMS))}"
    if str(cache_dtype) == "torch.float8_e4m3fn":
        return "it has no variant for an fp8 cache"
    return None


def shared_bytes(head_dim: int) -> int:
    """Dynamic shared memory of a block: Q, the stages of K and V, four mbarriers a stage, and what it takes to align them."""
    return ALIGNMENT + (1 + 2 * STAGES[head_dim]) * TILE * head_dim * 2 + 4 * STAGES[head_dim] * 8


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
) -> None:
    """paged_prefill.prefill_attention, of heads of 64 or 128 and a cache of q's dtype, on compute capability 9.0.

    A token's bits depend on its position and its request's cache alone, as there, but are not the same as there. Raises UnsupportedShape.
    """
    head_dim, kv_heads = q.shape[2], k_cache.shape[1]
    reason = obstacle(head_dim, k_cache.dtype, ARCHITECTURES_90A)
    require(reason is None, f"the prefill kernel for Hopper: {reason}")
    scalars = paged_prefill.checked_scalars(q, k_cache, v_cache, block_tables, work, chunks, out, scale, window, soft_cap, sinks)
    kernel = SOURCE.kernel("paged_prefill_wgmma", _variant(head_dim, dtype_macro(q.dtype, "q")))
    if not len(work):
        return
    launch(
        kernel, (len(work) * kv_heads,), (WARPGROUPS * 128,), shared_bytes(head_dim),
        *(0 if t is None else t.data_ptr() for t in (q, k_cache, v_cache, block_tables, work, chunks, sinks, out)), *scalars,
    )  # fmt: skip
