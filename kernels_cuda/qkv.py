"""Launcher of src/qkv.cu: q/k norm, rotary embedding and the write to the paged cache, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from kernels_cuda.kernel import Defines, Source, defines, dtype_macro, require
from kernels_cuda.launch import launch

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
THREADS = 128


@cache
def _variant(head_dim: int, fp8: int, dtype: str) -> Defines:
    return defines(HEAD_DIM=head_dim, FP8_CACHE=fp8, **{f"DTYPE_{dtype}": 1})


SOURCE = Source(
    "qkv.cu",
    tuple(_variant(d, fp8, dtype) for d in HEAD_DIMS for fp8 in (0, 1) for dtype in ("BF16", "FP16")),
    {"norm_rotate_write": 64},
)


@dataclass(frozen=True)
class RotaryTable:
    """cos_sin float32 [positions, 2, dim / 2]; dim: how many of a head's first dimensions turn. interleaved: neighbours turn against each
    other (GPT-J), not halves (NeoX)."""

    cos_sin: Any
    dim: int
    interleaved: bool = False


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms over each head of q and k: weights [head_dim]; offset is 1 for models that store weight - 1."""

    q_weight: Any
    k_weight: Any
    eps: float
    offset: float = 0.0


def norm_rotate_write(
    qkv: Any,
    q_out: Any,
    k_cache: Any,
    v_cache: Any,
    slots: Any,
    positions: Any,
    rotary: RotaryTable,
    norms: HeadNorms | None = None,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
) -> None:
    """Norm and turn q and k, write q to q_out and k and v to the cache slots.

    qkv [tokens, heads + 2 * kv_heads, head_dim], q_out [tokens, heads, head_dim]; q_out may be the q part of qkv itself. k_cache, v_cache
    [blocks, kv_heads, block_size, head_dim] of qkv's dtype, or float8_e4m3fn: then values are divided by k_scale, v_scale float32
    [kv_heads] (None: 1). slots int64 [tokens], -1 writes nothing; positions int32 [tokens]. Raises UnsupportedShape.
    """
    tokens, all_heads, head_dim = qkv.shape
    heads, (_, kv_heads, block_size, _) = q_out.shape[1], k_cache.shape
    kernel = _kernel(qkv, q_out, k_cache, v_cache)
    require(all_heads == heads + 2 * kv_heads, f"qkv has {all_heads} heads, not {heads} + 2 * {kv_heads}")
    require(rotary.dim % 2 == 0 and 0 <= rotary.dim <= head_dim, f"rotary dimension {rotary.dim} of a head of {head_dim}")
    require(str(rotary.cos_sin.dtype) == "torch.float32" and rotary.cos_sin.is_contiguous(), "cos_sin must be contiguous float32")
    require(str(slots.dtype) == "torch.int64" and str(positions.dtype) == "torch.int32", "slots must be int64 and positions int32")
    for scale in (k_scale, v_scale):
        require(scale is None or str(scale.dtype) == "torch.float32", "KV scales must be float32")
    if not tokens:
        return
    heads_per_block = THREADS // 32 * (32 // lanes_of(head_dim))
    pointers = (qkv, q_out, k_cache, v_cache, slots, positions, rotary.cos_sin)
    weights = (norms.q_weight, norms.k_weight) if norms else (None, None)
    launch(
        kernel, (tokens, -(-all_heads // heads_per_block)), (THREADS,), 0,
        *(t.data_ptr() for t in pointers), *(0 if t is None else t.data_ptr() for t in (*weights, k_scale, v_scale)),
        *map(np.int32, (heads, kv_heads, qkv.stride(0), block_size, rotary.dim, rotary.interleaved)),
        *map(np.float32, (norms.offset, norms.eps) if norms else (0, 0)),
    )  # fmt: skip


def lanes_of(head_dim: int) -> int:
    """Neighbouring lanes of a warp that hold one head, eight elements each; LANES of qkv.cu."""
    return 8 if head_dim <= 64 else 16 if head_dim <= 128 else 32


def _kernel(qkv: Any, q_out: Any, k_cache: Any, v_cache: Any) -> Any:
    head_dim = qkv.shape[2]
    require(head_dim in HEAD_DIMS, f"head size {head_dim} has no CUDA kernel; there are {', '.join(map(str, HEAD_DIMS))}")
    require(k_cache.shape == v_cache.shape and k_cache.shape[3] == head_dim == q_out.shape[2], "head sizes of qkv, q_out and caches differ")
    require(qkv.stride(2) == 1 and qkv.stride(1) == head_dim and qkv.stride(0) % 8 == 0, "a token's heads must lie side by side in qkv")
    same = q_out.data_ptr() == qkv.data_ptr() and q_out.stride() == qkv.stride()
    require(same or q_out.is_contiguous(), "q_out must be contiguous, or the q part of qkv")
    require(k_cache.is_contiguous() and v_cache.is_contiguous(), "KV caches must be contiguous")
    require(q_out.dtype == qkv.dtype, "q_out's dtype differs from qkv's")
    fp8 = str(k_cache.dtype) == "torch.float8_e4m3fn"
    require(k_cache.dtype == v_cache.dtype and (fp8 or k_cache.dtype == qkv.dtype), f"a KV cache of {k_cache.dtype} for {qkv.dtype}")
    return SOURCE.kernel("norm_rotate_write", _variant(head_dim, int(fp8), dtype_macro(qkv.dtype, "qkv")))
