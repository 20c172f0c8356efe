"""`python -m bench.growth`: it measures what it says, and its slopes are slopes."""

from __future__ import annotations

import pytest

from bench.growth import TREE_ROWS, Tree, by_context, by_rows, by_tree, slopes
from bench.step import Bench


def test_slopes_are_decades_per_decade() -> None:
    assert slopes([(1, 5.0), (10, 50.0), (100, 50.0)]) == pytest.approx(1.0)
    assert slopes([(1, 5.0), (10, 5.0), (100, 500.0)]) == pytest.approx(2.0)


def test_each_size_gives_a_point() -> None:
    assert [size for size, _ in by_rows((2, 8), 3)["decode step"]] == [2, 8]
    assert [size for size, _ in by_context((64, 256), 3)["decode step, 16 rows"]] == [64, 256]
    series = by_tree((1, 130), 3)
    assert len(series) == 4 and all([size for size, _ in points] == [1, 130] for points in series.values())
    assert all(value > 0 for points in series.values() for _, value in points)


def test_the_tree_is_as_large_as_asked_and_its_prompts_hit() -> None:
    bench = Bench(TREE_ROWS, 20, 1, prompt=1024, spare=400)
    before = len(bench.scheduler.kv.cache)
    tree = Tree(bench, 130)
    assert len(bench.scheduler.kv.cache) == before + 130
    hits = bench.scheduler.counters.prefix_hits
    tree.admissions(2)
    assert bench.scheduler.counters.prefix_hits - hits >= 2 * 2 * 16, "the paths that were put in are found again"
    tree.fill(bench.scheduler.kv.pool.num_free)
    evicted = bench.scheduler.kv.cache.num_evicted
    for _ in range(16):
        bench.turn()
    assert bench.scheduler.kv.cache.num_evicted - evicted >= TREE_ROWS, "each row crossed a block's end and somebody made room"
    bench.scheduler.validate()
