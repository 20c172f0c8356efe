"""Cases of the attention kernels: each shipped shape at small sizes, and Llama-3.1-8B's shape at the sizes that are timed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from bench.gpu.case import TOLERANCE, Builders, Case, Inputs, relative
from bench.gpu.kernels import check_and_time
from bench.gpu.part import run
from kernels_cuda import launch, mla_decode, paged_decode, paged_prefill, paged_prefill_wgmma, reference

CHECKED_REQUESTS = 4  # of a large batch
BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn


class Pages:
    """Random keys and values of requests in permuted pages of 16 tokens."""

    def __init__(self, make: Inputs, lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype, block: int = 16) -> None:
        counts = [-(-length // block) for length in lengths]
        pages = np.random.default_rng(make.seed).permutation(sum(counts) + 1)
        self.k, self.v = (make.normal(len(pages), kv_heads, block, dim, seed=seed).to(dtype) for seed in (1, 2))
        tables = np.zeros((len(lengths), max(counts)), np.int32)
        for row, (count, end) in enumerate(zip(counts, np.cumsum(counts))):
            tables[row, :count] = pages[end - count : end]
        self.tables, self.lengths = make.ints(tables), lengths
        self.token_bytes = 2 * kv_heads * dim * self.k.element_size()

    def of(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, kv_heads, dim] of a request."""
        length = self.lengths[row]
        at = self.tables[row, : -(-length // self.k.shape[2])].long()
        chosen = (cache.view(torch.uint8)[at].view(cache.dtype) for cache in (self.k, self.v))  # not every torch indexes fp8
        first, second = (each.float().transpose(1, 2).flatten(0, 1)[:length] for each in chosen)
        return first, second


def decode(
    make: Inputs,
    name: str,
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = BF16,
    cache: torch.dtype | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: bool = False,
    fixed_split: int = 0,
    large: bool = False,
) -> Case:
    pages = Pages(make, lengths, kv_heads, dim, cache or dtype)
    count = len(lengths)
    q, out = make.normal(count, heads, dim, dtype=dtype, seed=3), make.unwritten(count, heads, dim, dtype=dtype)
    sink = make.normal(heads, dtype=dtype, seed=4) if sinks else None
    each, blocks = np.arange(count, dtype=np.int32), paged_decode.head_blocks(kv_heads, heads // kv_heads)
    gpu = chip(make.device)
    resident = paged_decode.resident_blocks(gpu.multiprocessors, gpu.shared_memory, dim, pages.k.element_size())
    plan = paged_decode.plan_decode(np.array(lengths, np.int32), each, each, blocks, resident, window, fixed_split)
    work, merges = make.ints(plan.work), make.ints(plan.merges)
    scratch = make.unwritten(len(work), heads, dim, dtype=torch.float32), make.unwritten(len(work), heads, dtype=torch.float32)
    scale = dim**-0.5

    def run() -> None:
        paged_decode.decode_attention(q, pages.k, pages.v, pages.tables, work, merges, *scratch, out, scale, soft_cap, sink)

    def error() -> float:
        chosen = np.unique(np.linspace(0, count - 1, min(count, CHECKED_REQUESTS if large else count)).astype(int))
        wanted = [reference.decode_attention(q[row], *pages.of(row), scale, window, soft_cap, sink) for row in chosen.tolist()]
        return relative(out[torch.as_tensor(chosen, device=out.device)], torch.stack(wanted))

    seen = sum(min(length, window or length) for length in lengths)
    moved = seen * pages.token_bytes + 2 * q.numel() * q.element_size()
    return Case(name, run, error, TOLERANCE[dtype], (out, *scratch), moved, 4 * seen * heads * dim)


def prefill(
    make: Inputs,
    name: str,
    chunks: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = BF16,
    cache: torch.dtype | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: bool = False,
    large: bool = False,
    wgmma: bool = False,
) -> Case:
    """chunks: (tokens before, new tokens) of each. large: only some of it is compared, since the reference in float64 is slow. wgmma: by
    Hopper's kernel."""
    attention = paged_prefill_wgmma.prefill_attention if wgmma else paged_prefill.prefill_attention
    past, new = np.array(chunks, np.int32).T
    pages = Pages(make, (past + new).tolist(), kv_heads, dim, cache or dtype)
    total, first = int(new.sum()), (np.cumsum(new) - new).astype(np.int32)
    q, out = make.normal(total, heads, dim, dtype=dtype, seed=3), make.unwritten(total, heads, dim, dtype=dtype)
    sink = make.normal(heads, dtype=dtype, seed=4) if sinks else None
    plan = paged_prefill.plan_prefill(new, past, first, np.arange(len(new), dtype=np.int32), heads // kv_heads, window)
    work, parts, scale = make.ints(plan.work), make.ints(plan.chunks), dim**-0.5

    def run() -> None:
        attention(q, pages.k, pages.v, pages.tables, work, parts, out, scale, window, soft_cap, sink)

    def error() -> float:
        worst = 0.0
        for row in range(len(chunks) if not large else 1):
            begin, length = int(first[row]), int(past[row] + new[row])
            tail = min(int(new[row]), 64 if large else length)  # the last of the chunk's tokens, which see all
            at = slice(begin + int(new[row]) - tail, begin + int(new[row]))
            wanted = reference.prefill_attention(q[at], *pages.of(row), scale, window, soft_cap, sink)
            worst = max(worst, relative(out[at], wanted))
        return worst

    pairs = sum(int(b) * (int(b) + 1) // 2 + int(a) * int(b) for a, b in chunks)
    moved = int((past + new).sum()) * pages.token_bytes + 2 * q.numel() * q.element_size()
    return Case(name, run, error, TOLERANCE[dtype], (out,), moved, 4 * pairs * heads * dim)


def latent(make: Inputs, name: str, lengths: list[int], heads: int, dtype: torch.dtype = BF16) -> Case:
    """DeepSeek's latent attention."""
    pages = Pages(make, lengths, 1, 8, dtype)  # for its tables
    count, scale = len(lengths), 192**-0.5
    cache = make.normal(len(pages.k), 16, mla_decode.WIDTH, dtype=dtype, seed=1)
    q = make.normal(count, heads, mla_decode.LATENT, dtype=dtype, seed=3), make.normal(count, heads, mla_decode.ROPE, dtype=dtype, seed=4)
    out, gpu = make.unwritten(count, heads, mla_decode.LATENT, dtype=dtype), chip(make.device)
    each = np.arange(count, dtype=np.int32)
    resident = mla_decode.resident_blocks(gpu.multiprocessors, gpu.shared_memory, heads, gpu.block_memory)
    plan = paged_decode.plan_decode(np.array(lengths, np.int32), each, each, mla_decode.head_blocks(heads, gpu.block_memory), resident)
    work, merges = make.ints(plan.work), make.ints(plan.merges)
    scratch = (
        make.unwritten(len(work), heads, mla_decode.LATENT, dtype=torch.float32),
        make.unwritten(len(work), heads, dtype=torch.float32),
    )

    def run() -> None:
        mla_decode.mla_attention(*q, cache, pages.tables, work, merges, *scratch, out, scale, gpu.block_memory)

    def error() -> float:
        chosen = np.unique(np.linspace(0, count - 1, min(count, CHECKED_REQUESTS)).astype(int)).tolist()
        tokens = [cache[pages.tables[row].long()].flatten(0, 1)[: lengths[row]] for row in chosen]
        wanted = [reference.mla_attention(q[0][row], q[1][row], mine, scale) for row, mine in zip(chosen, tokens)]
        return relative(out[chosen], torch.stack(wanted))

    seen = sum(lengths)
    moved = seen * mla_decode.WIDTH * 2 + 2 * count * heads * (mla_decode.WIDTH + mla_decode.LATENT)
    return Case(name, run, error, TOLERANCE[dtype], (out, *scratch), moved, 2 * seen * heads * (mla_decode.WIDTH + mla_decode.LATENT))


def mixed(make: Inputs, name: str, lengths: list[int], chunks: list[tuple[int, int]], side_by_side: bool, **shape: int) -> Case:
    """A mixed step: decode rows and chunks, one launch after the other, or each on a stream of its own."""
    parts = decode(make, name, lengths, large=True, **shape), prefill(make, name, chunks, large=True, **shape)
    side = torch.cuda.Stream() if side_by_side and make.device == "cuda" else None

    def run() -> None:
        if side is None:
            parts[0].run()
            parts[1].run()
            return
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side), launch.on_stream(side.cuda_stream):
            parts[0].run()
        parts[1].run()
        main.wait_stream(side)

    return Case(
        name, run, lambda: max(part.error() for part in parts), parts[0].tolerance, parts[0].outputs + parts[1].outputs,
        parts[0].moved + parts[1].moved, parts[0].flops + parts[1].flops,
    )  # fmt: skip


@dataclass(frozen=True)
class Chip:
    """multiprocessors; bytes of shared memory of each, and of one block at most; whether it has wgmma."""

    multiprocessors: int
    shared_memory: int
    block_memory: int
    wgmma: bool


@cache
def chip(device: str) -> Chip:
    """This machine's GPU, or for the emulator a small one."""
    if device == "cpu":
        return Chip(4, 228 << 10, mla_decode.MOST_SHARED, True)
    import cupy

    device_ = cupy.cuda.Device()
    attributes = device_.attributes
    names = ("MultiProcessorCount", "MaxSharedMemoryPerMultiprocessor", "MaxSharedMemoryPerBlockOptin")
    return Chip(*(int(attributes[name]) for name in names), device_.compute_capability == "90")


def checks(make: Inputs, few: bool) -> Builders:
    """Every variant that is shipped, or only a handful."""
    lengths = [1, 16, 17, 100, 300] if few else [*range(1, 34), 63, 64, 65, 128, 129, 300, 1025]
    chunks = [(0, 5), (31, 20)] if few else [(0, 1), (0, 37), (31, 2), (63, 33), (100, 65), (130, 1), (257, 129)]
    dims = (128,) if few else paged_decode.HEAD_DIMS
    for dim in dims:
        for dtype in (BF16,) if few else (BF16, FP16):
            for kv in (None,) if few else (None, FP8):
                label = f"{dim} {str(dtype)[6:]}{' fp8 cache' if kv else ''}"
                shape = {"heads": 8, "kv_heads": 2, "dim": dim, "dtype": dtype, "cache": kv}
                options = {"window": 40, "soft_cap": 20.0, "sinks": True}
                yield partial(decode, make, f"decode {label}", lengths, **shape)
                yield partial(decode, make, f"decode {label} window cap sinks", lengths, **shape, **options)
                yield partial(decode, make, f"decode {label} fixed split", lengths, **shape, fixed_split=128)
                yield partial(prefill, make, f"prefill {label}", chunks, **shape)
                yield partial(prefill, make, f"prefill {label} window cap sinks", chunks, **shape, **options)
                if chip(make.device).wgmma and dim in paged_prefill_wgmma.HEAD_DIMS and kv is None:
                    further = [*chunks, (700, 150)]  # each stage is used again
                    yield partial(prefill, make, f"prefill wgmma {label}", further, **shape, wgmma=True)
                    yield partial(prefill, make, f"prefill wgmma {label} window cap sinks", further, **shape, **options, wgmma=True)
    for group in (1,) if few else (1, 7, 9, 16):
        yield partial(decode, make, f"decode group {group}", lengths[:8], heads=2 * group, kv_heads=2, dim=128)
        yield partial(prefill, make, f"prefill group {group}", chunks, heads=2 * group, kv_heads=2, dim=128)
        if chip(make.device).wgmma:
            yield partial(prefill, make, f"prefill wgmma group {group}", chunks, heads=2 * group, kv_heads=2, dim=128, wgmma=True)
    for heads in (16,) if few else (8, 16, 24, 64, 128):
        for dtype in (BF16,) if few else (BF16, FP16):
            yield partial(latent, make, f"latent {heads} heads {str(dtype)[6:]}", lengths[:40], heads, dtype)


def timed(make: Inputs, few: bool) -> Builders:
    """Llama-3.1-8B: 32 query heads, 8 KV heads of 128."""
    shape = {"heads": 4, "kv_heads": 1, "dim": 128} if few else {"heads": 32, "kv_heads": 8, "dim": 128}
    unit = 16 if few else 1024
    for requests, length in ((1, 1), (1, 8), (1, 64), (8, 8), (64, 1), (64, 4), (256, 1)):
        if few and requests * length > 8:
            continue
        label = f"decode {requests} x {length}k"
        yield partial(decode, make, label, [length * unit] * requests, **shape, large=True)
        if (requests, length) in ((64, 1), (64, 4), (1, 1)):
            yield partial(decode, make, f"{label} fp8", [length * unit] * requests, **shape, cache=FP8, large=True)
    lengths = [(37 * row * row) % (4 * unit) + 1 for row in range(2 if few else 128)]
    yield partial(decode, make, "decode 128 of 1 to 4k", lengths, **shape, large=True)
    for past, new, requests in ((0, 1, 1), (0, 8, 1), (0, 2, 4), (8, 1, 1), (0, 0.25, 32)):
        if few and requests > 1:
            continue
        label = f"prefill {requests} x {new}k after {past}k"
        yield partial(prefill, make, label, [(int(past * unit), int(new * unit))] * requests, **shape, large=True)
        if chip(make.device).wgmma:  # side by side with the one above: what --attention-prefill chooses between
            yield partial(
                prefill, make, f"{label} wgmma", [(int(past * unit), int(new * unit))] * requests, **shape, large=True, wgmma=True
            )
    for side_by_side in (False, True):
        label = f"mixed 128 of 1 to 4k + 2k of a prompt, {'side by side' if side_by_side else 'in turn'}"
        yield partial(mixed, make, label, lengths, [(0, 2 * unit)], side_by_side, **shape)
    for heads, requests, length in ((16, 64, 1), (128, 1, 8), (128, 64, 1), (128, 64, 4)):
        if not few or requests == 1:
            label = f"latent {heads} heads {requests} x {length}k"
            yield partial(latent, make, label, [length * unit] * requests, heads if not few else 16)


if __name__ == "__main__":
    run(lambda part: check_and_time(part, sys.modules[__name__]))
