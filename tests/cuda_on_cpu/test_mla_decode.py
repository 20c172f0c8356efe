"""Latent attention against float64, with everything that is not a request's own token NaN; bugs planted in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels_cuda import mla_decode, reference
from kernels_cuda.errors import UnsupportedShape
from kernels_cuda.mla_decode import LATENT, ROPE, TILE, WIDTH
from kernels_cuda.paged_decode import plan_decode
from tests.cuda_on_cpu.comparing import TOLERANCE, error, integers, nan, random
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError, emulated
from tests.cuda_on_cpu.guarded import guarded

BLOCK, SCALE = 16, 192**-0.5


@dataclass
class Latents:
    """Random cached tokens of requests in permuted pages, the rest NaN."""

    cache: torch.Tensor
    tables: torch.Tensor
    tokens: list[torch.Tensor]


def make_latents(lengths: list[int], dtype: torch.dtype = torch.bfloat16, block: int = BLOCK) -> Latents:
    """A request's tokens depend on its length alone."""
    counts = [-(-n // block) for n in lengths]
    pages = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(0)).tolist()
    cache = torch.full((len(pages), block, WIDTH), float("nan")).to(dtype)
    tables = torch.full((len(lengths), max(counts)), 1 << 30, dtype=torch.int32)
    tokens = []
    for row, length in enumerate(lengths):
        mine = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)).to(dtype)
        tokens.append(mine)
        for index in range(counts[row]):
            page = tables[row, index] = pages.pop()
            part = mine[index * block : (index + 1) * block]
            cache[page, : len(part)] = part
    return Latents(guarded(cache), guarded(tables), tokens)


def queries(count: int, heads: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent part as it leaves a product per head, [heads, count, 512], the rotated part as a slice of wider heads."""
    latent = guarded(random(heads, count, LATENT, dtype=dtype)).transpose(0, 1)
    return latent, guarded(random(count, heads, 128 + ROPE, dtype=dtype, seed=1))[:, :, 128:]


def attend(
    latents: Latents, q: tuple[torch.Tensor, torch.Tensor], lengths: list[int], seed: int = 0, fixed_split: int = 0, resident: int = 8,
    sources: Path = SOURCES, **options: int,
) -> torch.Tensor:  # fmt: skip
    count, heads, _ = q[0].shape
    each = np.arange(count, dtype=np.int32)
    plan = plan_decode(np.array(lengths, np.int32), each, each, mla_decode.head_blocks(heads), resident, 0, fixed_split)
    out, items = nan(count, heads, LATENT, dtype=q[0].dtype), len(plan.work)
    scratch = nan(items, heads, LATENT, dtype=torch.float32), nan(items, heads, dtype=torch.float32)
    with emulated(seed, sources):
        mla_decode.mla_attention(
            *q, latents.cache, latents.tables, integers(plan.work), integers(plan.merges), *scratch, out, SCALE, **options
        )
    return out


def expected(latents: Latents, q: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.stack([reference.mla_attention(a, b, tokens, SCALE) for a, b, tokens in zip(*q, latents.tokens)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_length(dtype: torch.dtype) -> None:
    """Up to 2 * tile + 1 tokens and around the ends of pages (16) and tiles (32)."""
    lengths = [*range(1, 2 * TILE + 2), 150] if dtype == torch.bfloat16 else [*range(1, 2 * TILE + 2, 5), 15, 17, 32, 33, 63, 64, 65]
    latents, q = make_latents(lengths, dtype), queries(len(lengths), 16, dtype)
    assert error(attend(latents, q, lengths, seed=3), expected(latents, q)) < TOLERANCE[dtype]


@pytest.mark.parametrize("heads,shared_limit", [(1, 1 << 20), (16, 1 << 20), (17, 1 << 20), (64, 1 << 20), (128, 1 << 20), (24, 99 << 10)])
def test_every_count_of_heads(heads: int, shared_limit: int) -> None:
    """Also where a block may not have the shared memory that 64 heads take."""
    lengths = [5, 70]
    latents, q = make_latents(lengths), queries(2, heads)
    assert error(attend(latents, q, lengths, seed=1, shared_limit=shared_limit), expected(latents, q)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("split", [16, 48, 128])
def test_splits(split: int) -> None:
    """Also such that begin and end within a tile."""
    lengths = [1, 17, 130, 171]
    latents, q = make_latents(lengths), queries(len(lengths), 16)
    assert error(attend(latents, q, lengths, fixed_split=split), expected(latents, q)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("block", [32, 64])
def test_larger_blocks(block: int) -> None:
    lengths = [31, 33, 100]
    latents, q = make_latents(lengths, block=block), queries(len(lengths), 16)
    assert error(attend(latents, q, lengths), expected(latents, q)) < TOLERANCE[torch.bfloat16]


def test_same_bits_in_every_order_of_threads() -> None:
    lengths = [90, 40]
    latents, q = make_latents(lengths), queries(2, 64)
    results = [attend(latents, q, lengths, seed) for seed in (0, 1, 2, 7)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_same_bits_alone_and_in_a_crowd() -> None:
    lengths = [300, 33, 1, 161]
    latents, q = make_latents(lengths), queries(len(lengths), 16)
    crowd = attend(latents, q, lengths, seed=1, fixed_split=128)
    for at, length in enumerate(lengths):
        alone = attend(make_latents([length]), (q[0][at : at + 1], q[1][at : at + 1]), [length], fixed_split=128)
        assert torch.equal(alone, crowd[at : at + 1])


@pytest.mark.parametrize(
    "heads,shared_memory,block_memory,blocks", [(16, 228, 227, 264), (128, 228, 227, 132), (128, 100, 99, 132), (128, 164, 163, 132)]
)
def test_blocks_at_once(heads: int, shared_memory: int, block_memory: int, blocks: int) -> None:
    """132 multiprocessors of Hopper, of a consumer GPU, whose blocks take 16 heads, and of Ampere."""
    assert mla_decode.resident_blocks(132, shared_memory << 10, heads, block_memory << 10) == blocks


def test_unsupported_shapes_are_named() -> None:
    latents, (latent, rope) = make_latents([3]), queries(1, 16)
    with pytest.raises(UnsupportedShape, match="latent attention of 256 and 576"):
        attend(latents, (latent[:, :, :256], rope), [3])
    with pytest.raises(UnsupportedShape, match=r"q_rope \(1, 16, 32\)"):
        attend(latents, (latent, rope[:, :, :32]), [3])
    with pytest.raises(UnsupportedShape, match="block size 8"):
        attend(make_latents([3], block=8), (latent, rope), [3])
    with pytest.raises(UnsupportedShape, match="must be of one dtype"):
        attend(make_latents([3], torch.float16), (latent, rope), [3])
    with pytest.raises(UnsupportedShape, match="multiples of 16 bytes"):
        attend(latents, (latent, random(1, 16, 132)[:, :, 68:]), [3])


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest error of a request: a token too many shows in a short one only."""
    return max(error(a, b) for a, b in zip(got, want))


Run = Callable[[int, Path], tuple[torch.Tensor, torch.Tensor]]


def wide(seed: int, sources: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Two warps to a group of heads."""
    lengths = [1, 23, 90]
    latents, q = make_latents(lengths), queries(len(lengths), 64)
    return attend(latents, q, lengths, seed, fixed_split=64, sources=sources), expected(latents, q)


def narrow(seed: int, sources: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Four warps to a group, of which seven heads are absent; splits begin within a tile."""
    lengths = [1, 23, 90]
    latents, q = make_latents(lengths), queries(len(lengths), 9)
    return attend(latents, q, lengths, seed, fixed_split=16, sources=sources), expected(latents, q)


@dataclass(frozen=True)
class Bug:
    """`old` is replaced by `new`; `run` must then go wrong, in each order of threads or in some."""

    name: str
    old: str
    new: str
    run: Run
    every_time: bool = True


BUGS = [
    Bug("the tile is not waited for", "    cp_async_wait<0>();\n    __sync", "    __sync", wide),
    Bug("no barrier before the maxima are read", "    __syncthreads();                                 // the maxima", "//", wide, False),
    Bug(
        "no barrier before the probabilities are read", "    __syncthreads();                                 // so are", "//", wide, False
    ),
    Bug("no barrier before the sums are read", "  __syncthreads();                                   // the sums", "//", narrow, False),
    Bug("the tail is not filled with zeros", "token0 + row >= begin && token0 + row < end;", "true;", wide),
    Bug("the mask lets one token too many in", "token >= end ? NEG_BIG", "token > end ? NEG_BIG", wide),
    Bug("a split begins a token early", "token < begin ||", "token < begin - 1 ||", narrow),
    Bug("a warp scores its neighbour's tokens", "rows + (slice * OWN + n * 8", "rows + (n * 8", wide),
    Bug("a warp weighs its neighbour's dimensions", "(slice * (DIMS / 8) + 2 * n", "(2 * n", wide),
    Bug("absent heads are read", "head < heads_here ? load16(from)", "true ? load16(from)", narrow),
    Bug("the rotated part is left out", "k < WIDTH / 32; k++", "k < LATENT / 32; k++", wide),
    Bug("the sums of one warp only", "w < SLICES; w++) total", "w < 1; w++) total", narrow),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / "mla_decode.cu").read_text()
    assert text.count(bug.old) == 1
    (tmp_path / "mla_decode.cu").write_text(text.replace(bug.old, bug.new))
    found, results = [], []
    for seed in (0, 1, 2, 7):
        try:
            got, want = bug.run(seed, tmp_path)
        except EmulationError as caught:
            found.append(str(caught))
            continue
        results.append(got)
        found.append("wrong" if error(got, want) > TOLERANCE[torch.bfloat16] else "" if torch.equal(got, results[0]) else "other bits")
    assert all(found) if bug.every_time else any(found), found


@pytest.mark.parametrize("run", [wide, narrow])
def test_nothing_is_found_in_the_source_as_it_is(run: Run) -> None:
    results = [run(seed, SOURCES) for seed in (0, 1, 2, 7)]
    assert all(torch.equal(got, results[0][0]) and worst(got, want) < 1.5 * TOLERANCE[torch.bfloat16] for got, want in results)
