"""Log lines of a process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ipc import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_says_how_severe_it_is_and_whose(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-0", "debug")
    logging.getLogger("gpu_workers.worker").debug("a step of ours")
    logging.getLogger("aiohttp").warning("a warning of aiohttp's")
    logs.set_level("warning")
    logging.getLogger("gpu_workers.worker").info("nothing")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["D worker-0: a step of ours", "W worker-0: a warning of aiohttp's"]
