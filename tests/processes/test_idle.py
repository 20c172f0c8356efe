"""An engine that nobody uses costs next to nothing, also while clients keep their connections."""

from __future__ import annotations

import pytest

from bench import idle


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_idle_takes_less_than_a_hundredth_of_a_core() -> None:
    result = idle.measure(seconds=10, connections=50, flags=["--frontends", "2"])
    assert len(result["by_process"]) == 5, result
    assert max(result["percent_of_a_core"].values()) < 1.0, result
