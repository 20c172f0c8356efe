"""Paged prefill attention against float64, with everything that is not a visible token of a request NaN; its plan; bugs planted in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_cuda import paged_prefill, reference
from kernels_cuda.errors import UnsupportedShape
from kernels_cuda.paged_prefill import ROWS, plan_prefill
from tests.cuda_on_cpu.comparing import TOLERANCE, error, integers, nan, random
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError, emulated
from tests.cuda_on_cpu.guarded import guarded

BLOCK = 16
KV_HEADS = 2
Chunk = tuple[int, int]  # tokens in the cache before, new tokens


@dataclass
class Step:
    """Chunks of requests over permuted pages. k, v: the caches, NaN where no visible token is; keys, values: per chunk; q: all chunks'
    queries, with a NaN row between chunks."""

    chunks: list[Chunk]
    k: torch.Tensor
    v: torch.Tensor
    tables: torch.Tensor
    q: torch.Tensor
    first: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def numbers(request: int, kind: int, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Tokens of a request; the same ones whatever company or chunk it comes in."""
    return torch.randn(tokens, heads, dim, generator=torch.Generator().manual_seed(100 * request + kind)).to(dtype)


def make_step(
    chunks: list[Chunk],
    group: int,
    dim: int,
    dtype: torch.dtype = torch.bfloat16,
    block: int = BLOCK,
    window: int = 0,
    requests: list[int] | None = None,
    seed: int = 0,
    cache_dtype: torch.dtype | None = None,
) -> Step:
    """requests: which request each chunk is of, by default another one each. Table entries that no token of the chunk sees name no page."""
    shuffled = torch.Generator().manual_seed(seed)
    pages = torch.randperm(sum(-(-(past + new) // block) for past, new in chunks) + 2, generator=shuffled).tolist()
    k = torch.full((len(pages), KV_HEADS, block, dim), float("nan")).to(cache_dtype or dtype)
    v = k.clone()
    tables = torch.full((len(chunks), max(-(-(past + new) // block) for past, new in chunks)), 1 << 30, dtype=torch.int32)
    first = np.cumsum([0] + [new + 1 for _, new in chunks]).tolist()
    q = torch.full((first[-1], KV_HEADS * group, dim), float("nan")).to(dtype)
    step = Step(chunks, k, v, tables, q, first, [], [])
    for at, (past, new) in enumerate(chunks):
        request, end = requests[at] if requests else at, past + new
        begin = max(0, past - window + 1) if window else 0
        q[first[at] : first[at] + new] = numbers(request, 2, end, KV_HEADS * group, dim, dtype)[past:]
        both = [numbers(request, kind, end, KV_HEADS, dim, cache_dtype or dtype) for kind in (0, 1)]
        step.keys.append(both[0])
        step.values.append(both[1])
        for index in range(begin // block, -(-end // block)):
            page = tables[at, index] = pages.pop()
            low, high = max(begin, index * block), min(end, (index + 1) * block)
            for where, source in ((k, both[0]), (v, both[1])):
                where[page, :, low - index * block : high - index * block] = source[low:high].transpose(0, 1)
    step.k, step.v, step.tables, step.q = (guarded(tensor) for tensor in (k, v, tables, q))
    return step


def attend(
    step: Step,
    seed: int = 0,
    sources: Path = SOURCES,
    pad_items: int = 0,
    window: int = 0,
    attention: Callable[..., None] = paged_prefill.prefill_attention,
    **options: object,
) -> list[torch.Tensor]:
    """Through plan and kernel, per chunk; what belongs to no chunk must stay NaN."""
    n, heads, dim = step.q.shape
    past, new = np.array(step.chunks, np.int32).T
    first, rows = np.array(step.first[:-1], np.int32), np.arange(len(new), dtype=np.int32)
    plan = plan_prefill(new, past, first, rows, heads // KV_HEADS, window, pad_items)
    out = nan(n, heads, dim, dtype=step.q.dtype)
    with emulated(seed, sources):
        attention(step.q, step.k, step.v, step.tables, integers(plan.work), integers(plan.chunks), out, dim**-0.5, window, **options)
    assert all(out[end].isnan().all() for end in (first + new).tolist())
    return [out[begin : begin + count] for begin, (_, count) in zip(step.first, step.chunks)]


def expected(step: Step, **options: object) -> list[torch.Tensor]:
    return [
        reference.prefill_attention(step.q[first : first + new], keys, values, step.q.shape[2] ** -0.5, **options)  # type: ignore[arg-type]
        for first, (_, new), keys, values in zip(step.first, step.chunks, step.keys, step.values)
    ]


def worst(step: Step, got: list[torch.Tensor], **options: object) -> float:
    """The largest relative error of a chunk."""
    return max(error(a, b) for a, b in zip(got, expected(step, **options)) if len(a))


def check(chunks: list[Chunk], group: int, dim: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **options: int) -> None:
    step = make_step(chunks, group, dim, dtype, options.get("block", BLOCK), options.get("window", 0))
    options.pop("block", None)
    assert worst(step, attend(step, seed, **options), **options) < TOLERANCE[dtype]


def test_every_count_of_new_tokens() -> None:
    """1 .. 2 * tile + 1 new tokens, a tile being 16 tokens of a group of 8."""
    check([(0, new) for new in range(1, 34)], 8, 64, seed=3)


def test_every_past() -> None:
    """The new tokens start at each place of a tile of K and V and around the end of two."""
    check([(past, 3) for past in [*range(67), 95, 111, 127, 128, 129, 257]], 2, 64, seed=1)


@pytest.mark.parametrize(
    "dim,dtype",
    [(32, torch.bfloat16), (64, torch.float16), (80, torch.bfloat16), (96, torch.float16), (128, torch.bfloat16), (256, torch.bfloat16)],
)
def test_every_head_size(dim: int, dtype: torch.dtype) -> None:
    check([(0, 1), (0, 37), (31, 2), (63, 33), (100, 65), (130, 1)], 4, dim, dtype, seed=2)


@pytest.mark.parametrize("group,new", [(1, 127), (1, 129), (3, 43), (5, 60), (7, 19), (16, 17), (128, 2), (150, 2)])
def test_every_group(group: int, new: int) -> None:
    """Also groups that do not divide the tile, so that a token's heads lie in two."""
    check([(5, new), (70, 1)], group, 64)


def test_mixed_step() -> None:
    """Decode rows, chunks of prompts and a row with nothing to do in one launch; padded items do nothing."""
    step = make_step([(40, 1), (0, 70), (129, 1), (12, 0), (64, 33), (7, 1)], 4, 64)
    assert worst(step, attend(step, seed=7, pad_items=12)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("block", [32, 48, 128])
def test_larger_blocks(block: int) -> None:
    check([(0, 31), (33, 64), (100, 29)], 4, 64, block=block)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 63, 64, 65, 100])
def test_sliding_window(window: int) -> None:
    check([(0, 40), (50, 33), (130, 1), (160, 35), (300, 16)], 4, 64, window=window)


@pytest.mark.parametrize("soft_cap", [5.0, 50.0])
def test_soft_cap(soft_cap: float) -> None:
    step = make_step([(0, 20), (70, 9)], 4, 64)
    step.q = guarded(step.q * 8)
    assert worst(step, attend(step, soft_cap=soft_cap), soft_cap=soft_cap) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("window", [0, 30])
def test_sinks(window: int) -> None:
    step, sinks = make_step([(0, 20), (70, 9)], 4, 64, window=window), guarded(random(8) * 6)
    assert worst(step, attend(step, sinks=sinks, window=window), sinks=sinks, window=window) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dim,dtype", [(32, torch.bfloat16), (64, torch.float16), (80, torch.bfloat16), (256, torch.bfloat16)])
def test_fp8_cache(dim: int, dtype: torch.dtype) -> None:
    step = make_step([(0, 37), (100, 9), (63, 1)], 4, dim, dtype, cache_dtype=torch.float8_e4m3fn)
    k_scale, v_scale = guarded(torch.tensor([0.5, 2.0])), guarded(torch.tensor([3.0, 0.25]))
    results = [attend(step, 1, k_scale=k_scale, v_scale=v_scale, soft_cap=cap) for cap in (0.0, 2.0)]
    step.keys = [keys.float() * k_scale[:, None] for keys in step.keys]
    step.values = [values.float() * v_scale[:, None] for values in step.values]
    assert worst(step, results[0]) < TOLERANCE[dtype]
    assert worst(step, results[1], soft_cap=2.0) < TOLERANCE[dtype]


def test_every_count_of_new_tokens_and_every_past_over_an_fp8_cache() -> None:
    for chunks, group in (([(0, new) for new in range(1, 34)], 8), ([(past, 3) for past in [*range(34), 63, 64, 65]], 2)):
        step = make_step(chunks, group, 64, cache_dtype=torch.float8_e4m3fn)
        got = attend(step, 3)
        step.keys, step.values = ([each.float() for each in column] for column in (step.keys, step.values))
        assert worst(step, got) < TOLERANCE[torch.bfloat16]


def test_same_bits_in_every_order_of_threads() -> None:
    step = make_step([(0, 37), (100, 5)], 4, 64)
    results = [torch.cat(attend(step, seed)) for seed in (0, 1, 2, 7, 12345)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dim,window", [(64, 0), (64, 50), (128, 0)])
def test_same_bits_alone_in_a_crowd_and_however_the_prompt_is_cut(dim: int, window: int) -> None:
    """Not at aligned points only: every cut gives the bits of the whole, down to one token at a time."""
    whole = torch.cat(attend(make_step([(0, 150)], 3, dim, window=window), window=window))
    crowd = make_step([(9, 1), (0, 150), (80, 30)], 3, dim, window=window, requests=[5, 0, 6], seed=1)
    assert torch.equal(attend(crowd, seed=1, window=window)[1], whole)
    for cuts in ([0, 64, 128, 150], [0, 1, 43, 44, 107, 149, 150], [*range(110, 150)]):
        chunks = [(begin, end - begin) for begin, end in pairwise(cuts)]
        cut = make_step(chunks, 3, dim, window=window, requests=[0] * len(chunks), seed=2)
        assert torch.equal(torch.cat(attend(cut, seed=2, window=window)), whole[cuts[0] : cuts[-1]])


def test_same_bits_beside_rows_that_see_a_tile_more() -> None:
    """A warp's rows lie on both sides of the start of a tile of K and V. Requests for which rescaling by almost 1 once showed in fp16."""
    requests = [52, 90, 93, 100]
    beside, alone = (
        attend(make_step([(121, new)] * len(requests), 4, 64, torch.float16, requests=requests)) for new in (20, 7)
    )  # positions up to 140, and up to 127
    for more, fewer in zip(beside, alone):
        assert torch.equal(more[:7], fewer)


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match="head size 72"):
        attend(make_step([(0, 3)], 4, 72))
    with pytest.raises(UnsupportedShape, match="block size 8"):
        attend(make_step([(0, 3)], 4, 64, block=8))
    with pytest.raises(UnsupportedShape, match="float32"):
        attend(make_step([(0, 3)], 4, 64, torch.float32))
    with pytest.raises(UnsupportedShape, match=r"float16 for q of torch\.bfloat16"):
        attend(make_step([(0, 3)], 4, 64, cache_dtype=torch.float16))
    with pytest.raises(UnsupportedShape, match="2 work items, its bucket 1"):
        attend(make_step([(0, 3), (0, 4)], 4, 64), pad_items=1)
    assert attend(make_step([(0, 0)], 4, 64))[0].numel() == 0


@settings(deadline=None)  # a loaded machine takes longer, and the time is not what is tested
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 700)), max_size=20),
    st.sampled_from([1, 3, 8, 128, 200]),
    st.sampled_from([0, 1, 100]),
)
def test_the_plan_covers_each_row_once_and_starts_with_the_longest(chunks: list[Chunk], group: int, window: int) -> None:
    past, new = np.array(chunks, np.int32).reshape(-1, 2).T
    each = np.arange(len(chunks), dtype=np.int32)
    made = plan_prefill(new, past, each + 50, each + 100, group, window)
    assert made.chunks.tolist() == [[at + 50, count, before, at + 100] for at, (before, count) in enumerate(chunks)]
    want = [(at, tile) for at, (_, count) in enumerate(chunks) for tile in range(-(-count * group // ROWS))]
    assert sorted(map(tuple, made.work.tolist())) == want
    assert len(want) <= paged_prefill.max_items(len(chunks), int(new.sum()), group)
    costs = [len(seen(*chunks[at], tile, group, window)) for at, tile in made.work.tolist()]
    assert costs == sorted(costs, reverse=True)


def seen(past: int, new: int, tile: int, group: int, window: int) -> range:
    """Tokens that some row of a tile sees, row by row."""
    positions = [past + row // group for row in range(tile * ROWS, min((tile + 1) * ROWS, new * group))]
    return range(max(0, positions[0] + 1 - window) if window else 0, positions[-1] + 1)


# ---------------------------------------------------------------- planted bugs


def chunked(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = make_step([(0, 33), (90, 20), (150, 1)], 3, 64)
    return torch.cat(attend(step, seed, sources)), torch.cat(expected(step))


def windowed(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = make_step([(0, 33), (150, 60)], 4, 64, window=20)
    return torch.cat(attend(step, seed, sources, window=20)), torch.cat(expected(step, window=20))


def sunk(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step, sinks = make_step([(0, 9)], 4, 64), guarded(random(8) * 6)
    return torch.cat(attend(step, seed, sources, sinks=sinks)), torch.cat(expected(step, sinks=sinks))


def eight_bits(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = make_step([(0, 9)], 4, 64, cache_dtype=torch.float8_e4m3fn)
    return torch.cat(attend(step, seed, sources)), torch.cat(expected(step))


@dataclass(frozen=True)
class Bug:
    """`old` is replaced by `new` once; `run` must then go wrong, in every order of threads or in some."""

    name: str
    old: str
    new: str
    run: Callable[[Path, int], tuple[torch.Tensor, torch.Tensor]] = chunked
    every_time: bool = True
    file: str = "paged_prefill.cu"


BUGS = [
    Bug("the wait is one cp.async group short", "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    Bug("no barrier in the loop", "__syncthreads();                                 // the others'", "//", chunked, False),
    Bug("the mask lets the next token in", "if (n * 8 + c > newest ||", "if (n * 8 + c > newest + 1 ||", chunked, True, "softmax.cuh"),
    Bug("no tile is masked unless the warp's last row needs it", "KV_TILE - 1 > lowest ||", "KV_TILE - 1 > highest ||"),
    Bug("the window lets one token too many in", "newest - window + 1 :", "newest - window :", windowed, True,
        "softmax.cuh"),
    Bug("a row that has seen nothing gives its tile weight", "higher == NEG_BIG ? 0.f : higher * factor", "0.f", windowed, True,
        "softmax.cuh"),
    Bug("tokens past the end are not zeros", "token >= begin && token < end;", "token >= begin;"),
    Bug("tokens before the window are not zeros", "token >= begin && token < end;", "token < end;", windowed),
    Bug("table entries past the end are read", "return token < end && token + COPY_ROWS > begin ?", "return token + COPY_ROWS > begin ?"),
    Bug("the page's number is of the tile before", "next_page = page_of(tile + STAGES);", "next_page = page_of(tile + STAGES - 1);"),
    Bug("ldmatrix takes K's chunks for its rows", "(2 * k + (lane >> 3 & 1))", "(2 * k + (lane >> 4))"),
    Bug("rows past the chunk's end are written", "place[h] = p < total ?", "place[h] = true ?"),
    Bug("a chunk's place among the queries is forgotten", "(chunk.x + token) *", "token *"),
    Bug("rows are taken for heads after tokens", "kv_head * group + (p - token * group) :", "(p - token * group) * kv_heads + kv_head :"),
    Bug("a warp skips a tile that its last rows see", "if (token0 > highest ||", "if (token0 > lowest ||"),
    Bug("the old result is not rescaled", "result[n][2 * h + 1] *= shrink;", ""),
    Bug("fp8 odd dimensions are taken from the even ones", "(r[0], 0, 0x4431)", "(r[0], 0, 0x4420)", eight_bits),
    Bug("the sink is one head off", "sinks[place[h] %", "sinks[(place[h] + 1) %", sunk),
    Bug("the sink outgrows the scores unnoticed", "finish = ex2(mine - highest_score) /", "finish = 1.f /", sunk),
]  # fmt: skip
ORDERS = (0, 1)


def goes_wrong(bug: Bug, sources: Path) -> list[str]:
    """Per order of threads what is wrong, an empty string for nothing."""
    found, results = [], []
    for seed in ORDERS:
        try:
            got, want = bug.run(sources, seed)
        except (EmulationError, AssertionError) as caught:
            found.append(str(caught) or "something else was written")
            continue
        results.append(got)
        wrong = error(got, want)
        found.append(
            f"relative error {wrong:.1e}" if wrong > TOLERANCE[torch.bfloat16] else "" if torch.equal(got, results[0]) else "other bits"
        )
    return found


@pytest.mark.parametrize("run", [chunked, windowed, sunk, eight_bits])
def test_nothing_is_found_in_the_source_as_it_is(run: Callable[[Path, int], tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert goes_wrong(Bug("none", "", "", run), SOURCES) == [""] * len(ORDERS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / bug.file).read_text()
    assert bug.old in text
    (tmp_path / bug.file).write_text(text.replace(bug.old, bug.new, 1))
    found = goes_wrong(bug, tmp_path)
    assert all(found) if bug.every_time else any(found), found


def test_too_little_shared_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = paged_prefill.shared_bytes
    monkeypatch.setattr(paged_prefill, "shared_bytes", lambda *args: right(*args) - 32)  # the last 16 bytes are the last row's padding
    with pytest.raises(EmulationError, match="dynamic shared memory at byte"):
        chunked(SOURCES, 0)
