"""Counters over several processes and lives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from frontend.metrics import _PLACES, HISTOGRAMS, ITL, Metrics


def test_all_frontends_are_added_up_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    first, second = Metrics(str(tmp_path), 0), Metrics(str(tmp_path), 1)
    first.count("request_success", "stop", 2)
    second.count("request_success", "stop")
    first.count("request_success", "abort")
    successor = Metrics(str(tmp_path), 0)
    successor.count("request_success", "stop")
    place = _PLACES["request_success"]
    for metrics in (first, second, successor):
        assert metrics.total()[place : place + 4].tolist() == [4, 0, 1, 0]


@pytest.mark.parametrize("value, bucket", [(0.0, 0), (0.01, 0), (0.0100001, 1), (80, len(ITL) - 1), (81, len(ITL))])
def test_buckets_hold_values_up_to_their_edge(tmp_path: Path, value: float, bucket: int) -> None:
    metrics = Metrics(str(tmp_path), 0)
    place = _PLACES["inter_token_latency_seconds"]
    metrics.observe("inter_token_latency_seconds", value)
    one = metrics.total()[place : place + len(ITL) + 2].copy()
    assert np.flatnonzero(one[:-1]).tolist() == [bucket] and one[-1] == pytest.approx(value)
    metrics.observe_gaps([round(value * 1e9), round(value * 1e9)])
    assert metrics.total()[place : place + len(ITL) + 2] == pytest.approx(3 * one)


def test_files_are_private(tmp_path: Path) -> None:
    Metrics(str(tmp_path), 3)
    assert (tmp_path / "metrics-3").stat().st_mode & 0o777 == 0o600


def test_an_unknown_value_is_a_bug_and_not_another_counter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in"):
        Metrics(str(tmp_path), 0).count("request_success", "whatever")


def test_places_do_not_overlap() -> None:
    ends = sorted((place, place + len(HISTOGRAMS[name][1]) + 2) for name, place in _PLACES.items() if name in HISTOGRAMS)
    assert all(before[1] <= after[0] for before, after in pairwise(ends))
