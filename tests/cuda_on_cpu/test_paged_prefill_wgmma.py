"""Prefill attention with wgmma against float64, from the steps and plans of test_paged_prefill.py; bugs planted in what is not as there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kernels_cuda import paged_prefill_wgmma
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu import test_paged_prefill as mma
from tests.cuda_on_cpu.comparing import TOLERANCE, error, random
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError
from tests.cuda_on_cpu.guarded import guarded
from tests.cuda_on_cpu.test_paged_prefill import BLOCK, Chunk, expected, make_step, worst

attend = partial(mma.attend, attention=paged_prefill_wgmma.prefill_attention)


def check(chunks: list[Chunk], group: int, dim: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **options: int) -> None:
    step = make_step(chunks, group, dim, dtype, options.pop("block", BLOCK), options.get("window", 0))
    assert worst(step, attend(step, seed, **options), **options) < TOLERANCE[dtype]


def test_every_count_of_new_tokens() -> None:
    """1 .. 2 * tile + 1 new tokens, a tile being 16 tokens of a group of 8."""
    check([(0, new) for new in range(1, 34)], 8, 64, seed=3)


def test_pasts_around_every_edge() -> None:
    """The new tokens start around the ends of pages, of halves and of tiles of K and V; two are enough for each tile to be used again."""
    edges = [0, 16, 64, 128, 256, 512, 640]
    check([(past, 3) for edge in edges for past in (edge - 3, edge - 2, edge - 1, edge, edge + 1) if past >= 0], 2, 64, seed=1)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_variant(dim: int, dtype: torch.dtype) -> None:
    check([(0, 1), (0, 37), (31, 2), (63, 33), (100, 65), (130, 1), (300, 40)], 4, dim, dtype, seed=2)


@pytest.mark.parametrize("group,new", [(1, 63), (1, 65), (1, 127), (1, 129), (3, 43), (5, 60), (7, 19), (16, 17), (128, 2), (150, 2)])
def test_every_group(group: int, new: int) -> None:
    """Also groups that do not divide the tile, so that a token's heads lie in two; blocks of one and of two warpgroups."""
    check([(5, new), (70, 1)], group, 64)


@pytest.mark.parametrize("past", [70, 127, 500])
def test_warpgroups_that_see_other_tiles(past: int) -> None:
    """128 tokens of a group of 1: the first warpgroup may be done a tile earlier, and in a window begin one earlier."""
    check([(past, 128)], 1, 64, seed=2)
    check([(past, 128)], 1, 64, seed=1, window=50)


def test_mixed_step() -> None:
    """Decode rows, chunks of prompts and a row with nothing to do in one launch; padded items do nothing."""
    step = make_step([(40, 1), (0, 70), (129, 1), (12, 0), (64, 33), (7, 1)], 4, 64)
    assert worst(step, attend(step, seed=7, pad_items=12)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("block", [32, 48, 128])
def test_larger_blocks(block: int) -> None:
    check([(0, 31), (33, 64), (100, 29)], 4, 64, block=block)


@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 127, 128, 129, 200])
def test_sliding_window(window: int) -> None:
    check([(0, 40), (50, 33), (130, 1), (300, 16)], 4, 64, window=window)


def test_soft_cap() -> None:
    step = make_step([(0, 20), (70, 9)], 4, 64)
    step.q = guarded(step.q * 8)
    for cap in (5.0, 50.0):
        assert worst(step, attend(step, soft_cap=cap), soft_cap=cap) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("window", [0, 30])
def test_sinks(window: int) -> None:
    step, sinks = make_step([(0, 20), (70, 9)], 4, 64, window=window), guarded(random(8) * 6)
    assert worst(step, attend(step, sinks=sinks, window=window), sinks=sinks, window=window) < TOLERANCE[torch.bfloat16]


def test_same_bits_in_every_order_of_threads() -> None:
    step = make_step([(0, 37), (300, 45)], 4, 64)
    results = [torch.cat(attend(step, seed)) for seed in (0, 1, 2, 7, 12345)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dim,window", [(64, 0), (64, 50), (128, 0)])
def test_same_bits_alone_in_a_crowd_and_however_the_prompt_is_cut(dim: int, window: int) -> None:
    """Also where rows beside a row see a tile more than it does: that tile leaves its sums as they were."""
    whole = torch.cat(attend(make_step([(0, 150)], 3, dim, window=window), window=window))
    crowd = make_step([(9, 1), (0, 150), (80, 30)], 3, dim, window=window, requests=[5, 0, 6], seed=1)
    assert torch.equal(attend(crowd, seed=1, window=window)[1], whole)
    for cuts in ([0, 64, 128, 150], [0, 1, 43, 44, 107, 149, 150], [*range(120, 132)]):
        chunks = [(begin, end - begin) for begin, end in pairwise(cuts)]
        cut = make_step(chunks, 3, dim, window=window, requests=[0] * len(chunks), seed=2)
        assert torch.equal(torch.cat(attend(cut, seed=2, window=window)), whole[cuts[0] : cuts[-1]])


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match=r"for Hopper: it has no variant for heads of 96; there are 64, 128"):
        attend(make_step([(0, 3)], 4, 96))
    with pytest.raises(UnsupportedShape, match="no variant for an fp8 cache"):
        attend(make_step([(0, 3)], 4, 64, cache_dtype=torch.float8_e4m3fn))
    with pytest.raises(UnsupportedShape, match="block size 8"):
        attend(make_step([(0, 3)], 4, 64, block=8))
    with pytest.raises(UnsupportedShape, match="float32"):
        attend(make_step([(0, 3)], 4, 64, torch.float32))
    assert paged_prefill_wgmma.obstacle(64, torch.bfloat16, ("100",)) == (
        "it needs a GPU of compute capability 9.0 (Hopper); this one runs sm_100"
    )
    assert paged_prefill_wgmma.obstacle(128, torch.float16, ("90a", "90")) is None


# ---------------------------------------------------------------- planted bugs


def chunked(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = make_step([(0, 33), (400, 1), (480, 40)], 3, 128)  # up to five tiles in two stages, for two warpgroups and for one
    return torch.cat(attend(step, seed, sources)), torch.cat(expected(step))


def windowed(sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = make_step([(0, 33), (500, 128)], 1, 128, window=300)  # the first of four tiles is not seen by the second warpgroup
    return torch.cat(attend(step, seed, sources, window=300)), torch.cat(expected(step, window=300))


@dataclass(frozen=True)
class Bug:
    """`old` is replaced by `new` once; `run` must then go wrong, in every order of threads or in some."""

    name: str
    old: str
    new: str
    run: Callable[[Path, int], tuple[torch.Tensor, torch.Tensor]] = chunked
    every_time: bool = True
    file: str = "paged_prefill_wgmma.cu"


BUGS = [
    Bug("no proxy fence between the copies and the products", "    fence_proxy_async();\n", ""),
    Bug("scores are read before they are waited for", "    wgmma_wait<1>();\n", ""),
    Bug("keys are given back before they are read", "    wgmma_wait<1>();\n    settle(s);\n    give_back(keys_free, tile);\n",
        "    give_back(keys_free, tile);\n    wgmma_wait<1>();\n"),
    Bug("producers do not wait for free keys", "if (i + 1 >= STAGES) mbarrier_wait", "if (false) mbarrier_wait", chunked, False),
    Bug("consumers do not wait for the values", "wait_for(values_full, tile - 1);", ""),
    Bug("the phase is not turned", "static_cast<unsigned>(tile - first) / STAGES & 1);", "0);", chunked, False),
    Bug("lanes are left behind", "    __syncwarp();   // a lane", "    // a lane", windowed, False),
    Bug("one warp is not counted among the readers", "const int readers = 4 *", "const int readers = 3 +"),
    Bug("a warpgroup with no rows is waited for", "base + 64 < total ? 2 : 1", "2"),
    Bug("a tile that only the other warpgroup sees is not given back", "tile < seen_first; tile++) {", "tile < 0; tile++) {", windowed),
    Bug("the values' panels are taken for neighbours", "matrix_descriptor(values, PANEL,", "matrix_descriptor(values, 1024,"),
    Bug("a step along the keys leaves the panel", "k / 4 * PANEL + k % 4 * 32), advance(tile", "k * 32), advance(tile"),
    Bug("the second warpgroup multiplies the first one's queries", "queries + half * 64", "queries + 0 * 64"),
    Bug("rows are not swizzled", "((piece ^ (row & 7)) << 4)", "(piece << 4)", chunked, True, "hopper.cuh"),
    Bug("tiles lie where shared memory happens to begin", "(-reinterpret_cast<size_t>(unaligned) & 1023)", "0"),
    Bug("the mask lets the next token in", "if (n * 8 + c > newest ||", "if (n * 8 + c > newest + 1 ||", chunked, True, "softmax.cuh"),
    Bug("the window lets one token too many in", "newest - window + 1 :", "newest - window :", windowed, True,
        "softmax.cuh"),
    Bug("a row that has seen nothing gives its tile weight", "higher == NEG_BIG ? 0.f : higher * factor", "0.f", windowed, True,
        "softmax.cuh"),
    Bug("tokens past the end are not zeros", "token >= begin && token < end;", "token >= begin;"),
    Bug("table entries past the end are read", "return token < end && token + COPY_ROWS > begin ?", "return token + COPY_ROWS > begin ?"),
    Bug("values come from the next tile's pages", "v_cache, tile, pages);", "v_cache, tile, next_pages);"),
    Bug("the old result is not rescaled", "result[n][c] *= shrink[c >> 1];", ""),
]  # fmt: skip
ORDERS = (0, 3)


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


@pytest.mark.parametrize("run", [chunked, windowed])
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
    right = paged_prefill_wgmma.shared_bytes
    monkeypatch.setattr(paged_prefill_wgmma, "shared_bytes", lambda dim: right(dim) - paged_prefill_wgmma.ALIGNMENT)
    with pytest.raises(EmulationError, match="dynamic shared memory at byte"):
        chunked(SOURCES, 0)
