"""The benchmark of the step measures what it says it does."""

from __future__ import annotations

from bench.step import Bench, measure


def test_every_row_decodes_and_blocks_grow() -> None:
    bench = Bench(rows=20, steps=40, frontends=2)
    used = bench.scheduler.kv.pool.num_used
    for _ in range(32):
        bench.turn()
    bench.scheduler.validate()
    assert bench.scheduler.num_running == 20
    assert bench.scheduler.kv.pool.num_used == used + 40
    assert bench.scheduler.counters.preemptions == 0


def test_results_are_complete() -> None:
    result = measure(rows=3, steps=5, frontends=1)
    assert result["rows"] == 3 and 0 < result["plan_us_p50"] <= result["total_us_p99"]
