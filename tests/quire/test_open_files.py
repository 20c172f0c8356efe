"""The limit on open files: raised as far as the connections need, or a clear word before anything starts."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ipc.config import Config, ServerConfig
from ipc.errors import ConfigError
from quire import open_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 1_000_000), [(4096 + open_files.OTHERS, 1_000_000)]),
        ((1024, resource.RLIM_INFINITY), [(4096 + open_files.OTHERS, resource.RLIM_INFINITY)]),
        ((65_536, 65_536), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_the_soft_limit_is_raised_when_it_is_too_low(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, value: done.append(value))
    open_files.allow(Config(server=ServerConfig(max_connections=4096)))
    assert done == expected


def test_a_hard_limit_below_that_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    with pytest.raises(ConfigError, match=r"max_connections \(5000\) .*lower --max-connections to 3968"):
        open_files.allow(Config(server=ServerConfig(max_connections=5000)))


def test_the_default_is_lowered_to_what_the_hard_limit_allows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, value: done.append(value))
    assert open_files.allow(Config()).server.max_connections == 4096 - open_files.OTHERS
    assert done == [(4096, 4096)] and "3968 connections" in caplog.text


def test_serve_refuses_before_it_starts_anything() -> None:
    command = f"ulimit -n 400 && exec {sys.executable} -m quire serve --port 0 --max-connections 1000"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 2
    assert "lower --max-connections to 272" in done.stderr and "Traceback" not in done.stderr
