"""What holds for every test."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about what else the machine does than about the code. The examples are the same everywhere, so that
# no machine is the first to try one; `--hypothesis-profile explore` tries others.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quire", settings.get_profile("explore"), derandomize=True)
settings.load_profile("quire")


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh directory with a short name, as sockets need it; a long test's tmp_path is too long."""
    return tmp_path_factory.mktemp("r")
