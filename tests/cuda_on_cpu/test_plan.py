"""The host's plan of a decode step: every visible token in one item, in order, whatever the split."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels_cuda.errors import UnsupportedShape
from kernels_cuda.paged_decode import DecodePlan, fixed_split, head_blocks, max_items, plan_decode


def plan(
    lengths: list[int], resident: int = 264, window: int = 0, split: int = 0, blocks: int = 8, pads: tuple[int, int] = (0, 0)
) -> DecodePlan:
    n = len(lengths)
    rows, queries = np.arange(n, dtype=np.int32) + 100, np.arange(n, dtype=np.int32)[::-1].copy()
    return plan_decode(np.array(lengths, np.int32), rows, queries, blocks, resident, window, split, *pads)


@given(
    st.lists(st.integers(0, 5000), max_size=40),
    st.integers(1, 600),
    st.sampled_from([0, 1, 17, 4096]),
    st.sampled_from([0, 16, 512]),
    st.sampled_from([1, 8]),
)
def test_items_cover_each_requests_tokens_once(lengths: list[int], resident: int, window: int, split: int, blocks: int) -> None:
    made = plan(lengths, resident, window, split, blocks)
    assert len(made.work) <= max_items(len(lengths), blocks, resident, sum(lengths), split)
    assert made.merges[:, 0].tolist() == [0, *made.merges[:-1, 1]] if lengths else not len(made.merges)
    for at, (first, end, query, _) in enumerate(made.merges.tolist()):
        items = made.work[first:end].tolist()
        assert query == len(lengths) - 1 - at
        assert all(item[0] == query and item[3] == 100 + at and item[1] < item[2] for item in items)
        start = max(0, lengths[at] - window) if window else 0
        cuts = [start] + [item[2] for item in items]
        assert [item[1] for item in items] == cuts[:-1] and (cuts[-1] == lengths[at] if lengths[at] else not items)
        assert not split or all(cut % split == 0 for cut in cuts[1:-1])


@pytest.mark.parametrize(("longest", "split"), [(1, 512), (8192, 512), (8193, 576), (131_072, 8192)])
def test_the_fixed_split_bounds_a_steps_items_by_its_rows(longest: int, split: int) -> None:
    assert fixed_split(longest) == split
    for window in (0, 100, longest // 3):
        items = len(plan([longest] * 3, window=window, split=split).work)
        assert items <= max_items(3, 8, 264, 3 * longest, split) <= 3 * 18


def test_one_long_request_fills_the_gpu() -> None:
    items = len(plan([100_000]).work) * 8
    assert 0.9 * 264 <= items <= 264


def test_many_short_requests_stay_whole() -> None:
    assert len(plan([1000] * 256).work) == 256


def test_a_long_request_among_short_ones_is_cut() -> None:
    work = plan([100_000] + [1000] * 255).work
    assert (work[:, 2] - work[:, 1]).max() < 12_000


def test_padding() -> None:
    made = plan([100, 3], pads=(5, 4))
    assert made.work[2:].tolist() == [[0, 0, 0, 0]] * 3
    assert made.merges[2:, 2].tolist() == [-1, -1]
    with pytest.raises(UnsupportedShape, match="2 work items, its bucket 1"):
        plan([100, 3], pads=(1, 4))


def test_groups_above_eight_heads_take_more_blocks() -> None:
    assert [head_blocks(4, group) for group in (1, 8, 9, 16, 17)] == [4, 4, 8, 8, 12]


def test_planning_does_not_loop_over_requests() -> None:
    """4,096 requests take less than ten times as long as 4 (a loop would take hundreds of times)."""

    def seconds(n: int) -> float:
        lengths, each = np.full(n, 1000, np.int32), np.arange(n, dtype=np.int32)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            plan_decode(lengths, each, each, 8, 264)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(4096) < 10 * seconds(4) + 0.002
