"""What holds for every test."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("quire", deadline=None)
settings.load_profile("quire")


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh directory with a short name, as sockets need it; a long test's tmp_path is too long."""
    return tmp_path_factory.mktemp("r")
