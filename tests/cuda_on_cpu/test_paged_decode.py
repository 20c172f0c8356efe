"""Paged decode attention and the merge of splits against float64, with everything that is not a request's own token NaN."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kernels_cuda import paged_decode, reference
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu.comparing import TOLERANCE, error, integers, nan, random
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded

BLOCK = 16


@dataclass
class Cache:
    """Random keys and values of requests in permuted pages. k, v: the caches; keys, values: per request [tokens, kv_heads, dim]."""

    k: torch.Tensor
    v: torch.Tensor
    tables: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def make_cache(
    lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype = torch.bfloat16, block: int = BLOCK, visible: int = 0, seed: int = 0
) -> Cache:
    """visible: tokens before the last so many are NaN, too (as when a sliding window's blocks were given away)."""
    random_numbers = torch.Generator().manual_seed(seed)
    counts = [-(-n // block) for n in lengths]
    pages = torch.randperm(sum(counts) + 2, generator=random_numbers).tolist()
    k = torch.full((len(pages), kv_heads, block, dim), float("nan")).to(dtype)
    v = k.clone()
    tables = torch.zeros(len(lengths), max(counts, default=1) or 1, dtype=torch.int32)
    keys, values = [], []
    for request, length in enumerate(lengths):
        both = [torch.randn(length, kv_heads, dim, generator=torch.Generator().manual_seed(1000 * length + i)).to(dtype) for i in (0, 1)]
        keys.append(both[0])
        values.append(both[1])
        for index in range(counts[request]):
            page = tables[request, index] = pages.pop()
            for cache, source in zip((k, v), both):
                first = max(index * block, length - visible if visible else 0)
                last = min(length, (index + 1) * block)
                if first < last:
                    cache[page, :, first - index * block : last - index * block] = source[first:last].transpose(0, 1)
    return Cache(guarded(k), guarded(v), guarded(tables), keys, values)


def attend(
    cache: Cache,
    q: torch.Tensor,
    lengths: list[int],
    seed: int = 0,
    fixed_split: int = 0,
    resident: int = 24,
    window: int = 0,
    **options: object,
) -> torch.Tensor:
    """Through plan, kernel and merge; results and scratch are NaN before."""
    n, heads, dim = q.shape
    kv_heads = cache.k.shape[1]
    each = np.arange(n, dtype=np.int32)
    blocks = paged_decode.head_blocks(kv_heads, heads // kv_heads)
    plan = paged_decode.plan_decode(np.array(lengths, np.int32), each, each, blocks, resident, window, fixed_split)
    out = nan(n, heads, dim, dtype=q.dtype)
    items = max(1, len(plan.work))
    scratch = nan(items, heads, dim, dtype=torch.float32), nan(items, heads, dtype=torch.float32)
    work, merges = integers(plan.work), integers(plan.merges)
    with emulated(seed):
        scale = dim**-0.5
        paged_decode.decode_attention(q, cache.k, cache.v, cache.tables, work, merges, *scratch, out, scale, **options)  # type: ignore[arg-type]
    return out


def expected(cache: Cache, q: torch.Tensor, **options: object) -> torch.Tensor:
    scale = q.shape[2] ** -0.5
    rows = (reference.decode_attention(a, k, v, scale, **options) for a, k, v in zip(q, cache.keys, cache.values))  # type: ignore[arg-type]
    return torch.stack(list(rows))


@pytest.mark.parametrize(
    "dim,dtype",
    [(32, torch.bfloat16), (64, torch.bfloat16), (80, torch.bfloat16), (96, torch.float16), (128, torch.bfloat16), (256, torch.float16)],
)
def test_every_length(dim: int, dtype: torch.dtype) -> None:
    """1 .. 2 * tile + 1 tokens per warp's turn, and around the turn of all warps."""
    lengths = [*range(1, 34), 63, 64, 65, 127, 128, 129, 150]
    cache, q = make_cache(lengths, 2, dim, dtype), random(len(lengths), 6, dim, dtype=dtype)
    assert error(attend(cache, q, lengths, seed=3), expected(cache, q)) < TOLERANCE[dtype]


@pytest.mark.parametrize("group", [1, 7, 8, 9, 17])
def test_every_group(group: int) -> None:
    lengths = [5, 200]
    cache, q = make_cache(lengths, 2, 128), random(2, 2 * group, 128)
    assert error(attend(cache, q, lengths, seed=1), expected(cache, q)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("split", [16, 64, 128, 512])
def test_splits(split: int) -> None:
    lengths = [1, 16, 17, 300, 171, 513]
    cache, q = make_cache(lengths, 2, 128), random(len(lengths), 8, 128)
    assert error(attend(cache, q, lengths, fixed_split=split), expected(cache, q)) < TOLERANCE[torch.bfloat16]


def test_same_bits_in_every_order_of_threads() -> None:
    lengths = [300, 171]
    cache, q = make_cache(lengths, 2, 128), random(2, 8, 128)
    results = [attend(cache, q, lengths, seed) for seed in (0, 1, 2, 7, 12345)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_same_bits_alone_and_in_a_crowd() -> None:
    """The deterministic mode: a fixed split size."""
    lengths = [700, 33, 1, 290, 1025]
    cache, q = make_cache(lengths, 2, 128), random(len(lengths), 8, 128)
    crowd = attend(cache, q, lengths, seed=1, fixed_split=256)
    for at, length in enumerate(lengths):
        alone = make_cache([length], 2, 128, seed=at + 1)
        assert torch.equal(attend(alone, guarded(q[at : at + 1]), [length], fixed_split=256), crowd[at : at + 1])


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64, 100])
def test_sliding_window(window: int) -> None:
    lengths = [1, 16, 17, 50, 120, 200]
    cache, q = make_cache(lengths, 2, 128, visible=window), random(len(lengths), 8, 128)
    got = attend(cache, q, lengths, window=window, fixed_split=64)
    assert error(got, expected(cache, q, window=window)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("soft_cap", [5.0, 50.0])
def test_soft_cap(soft_cap: float) -> None:
    lengths = [40, 130]
    cache, q = make_cache(lengths, 2, 128), guarded(random(2, 8, 128) * 8)
    assert error(attend(cache, q, lengths, soft_cap=soft_cap), expected(cache, q, soft_cap=soft_cap)) < TOLERANCE[torch.bfloat16]


def test_sinks() -> None:
    lengths = [3, 130, 400]
    cache, q, sinks = make_cache(lengths, 2, 128), random(3, 8, 128), guarded(random(8) * 3)
    assert error(attend(cache, q, lengths, fixed_split=128, sinks=sinks), expected(cache, q, sinks=sinks)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    "dim,dtype", [(32, torch.bfloat16), (64, torch.bfloat16), (80, torch.bfloat16), (128, torch.float16), (256, torch.bfloat16)]
)
def test_fp8_cache(dim: int, dtype: torch.dtype) -> None:
    lengths = [*range(1, 34), 40, 150]
    cache, q = make_cache(lengths, 2, dim, torch.float8_e4m3fn), random(len(lengths), 8, dim, dtype=dtype)
    k_scale, v_scale = guarded(torch.tensor([0.5, 2.0])), guarded(torch.tensor([3.0, 0.25]))
    got = attend(cache, q, lengths, seed=2, k_scale=k_scale, v_scale=v_scale)
    cache.keys = [keys.float() * k_scale[:, None] for keys in cache.keys]
    cache.values = [values.float() * v_scale[:, None] for values in cache.values]
    assert error(got, expected(cache, q)) < TOLERANCE[dtype]


@pytest.mark.parametrize("block", [32, 64])
def test_larger_blocks(block: int) -> None:
    lengths = [1, 31, 33, 100]
    cache, q = make_cache(lengths, 2, 128, block=block), random(len(lengths), 8, 128)
    assert error(attend(cache, q, lengths), expected(cache, q)) < TOLERANCE[torch.bfloat16]


def test_padding_of_a_graph_bucket() -> None:
    """Padded items and requests change nothing; a request of no tokens gets zeros."""
    lengths = [40, 0, 9]
    cache, q = make_cache(lengths, 2, 128), random(5, 8, 128)
    queries = np.array([4, 1, 0], np.int32)
    blocks = paged_decode.head_blocks(2, 4)
    plan = paged_decode.plan_decode(np.array(lengths, np.int32), np.arange(3, dtype=np.int32), queries, blocks, 24, 0, 16, 9, 6)
    assert plan.work.shape == (9, 4) and plan.merges.shape == (6, 4)
    out, scratch = nan(5, 8, 128), (nan(9, 8, 128, dtype=torch.float32), nan(9, 8, dtype=torch.float32))
    with emulated(1):
        paged_decode.decode_attention(
            q, cache.k, cache.v, cache.tables, integers(plan.work), integers(plan.merges), *scratch, out, 128**-0.5
        )
    for at, query in ((0, 4), (2, 0)):
        want = reference.decode_attention(q[query], cache.keys[at], cache.values[at], 128**-0.5)
        assert error(out[query], want) < TOLERANCE[torch.bfloat16]
    assert not out[1].any() and out[2:4].isnan().all()


def test_unsupported_shapes_are_named() -> None:
    cache, q = make_cache([3], 2, 128), random(1, 8, 128)
    with pytest.raises(UnsupportedShape, match="head size 72"):
        attend(make_cache([3], 2, 72), random(1, 8, 72), [3])
    with pytest.raises(UnsupportedShape, match="7 query heads are not a multiple of 2"):
        attend(cache, random(1, 7, 128), [3])
    with pytest.raises(UnsupportedShape, match="block size 8"):
        attend(make_cache([3], 2, 128, block=8), q, [3])
    with pytest.raises(UnsupportedShape, match="float32"):
        attend(make_cache([3], 2, 128, torch.float32), random(1, 8, 128, dtype=torch.float32), [3])
    with pytest.raises(UnsupportedShape, match=r"float16 for q of torch\.bfloat16"):
        attend(make_cache([3], 2, 128, torch.float16), q, [3])
