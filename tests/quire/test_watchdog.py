"""The watchdog's decisions, on a clock of the test's; tests/quire/test_supervisor.py has it with real processes."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest

from ipc.arena import Stat
from ipc.config import ChildSpec, Config
from quire.child_process import Child
from quire.systemd import Notifier
from quire.watchdog import STALL_SECONDS, Watchdog
from tests.fakes import small_model

NOW = 10_000.0


class Process:
    """Of a pid that no process has, so that it uses no CPU time."""

    pid = 2**30
    returncode = None

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Told(Notifier):
    watchdog_seconds = 2.0

    def __init__(self) -> None:
        self.lines: list[str] = []

    def send(self, *lines: str) -> None:
        self.lines += lines


class Engine:
    """A scheduler and two workers, all ready since NOW - 2,000 s and heard of at NOW - 0.5 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW - 1
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.status = np.zeros(len(Stat), np.int64)
        self.children = [self.child("scheduler", 0), self.child("worker", 0), self.child("worker", 1)]
        self.told = Told()
        self.watchdog = Watchdog(self.children, self.status, self.told)

    def child(self, role: Any, index: int) -> Child:
        spec = ChildSpec(
            role=role, index=index, epoch=1, scheduler_epoch=1, runtime_dir="", device="cpu", config=Config(), model=small_model(), fds={}
        )
        status = np.zeros(len(Stat), np.int64)
        return Child(spec, cast(Any, Process()), -1, status, ready=True, ready_since=NOW - 2000, last_sign=NOW - 0.5)

    def look(self, now: float = NOW) -> None:
        self.now = now
        self.watchdog.look(now)

    @property
    def killed(self) -> list[str]:
        return [child.name for child in self.children if cast(Any, child.process).killed]

    def runnable(self, oldest: float, last_step: float) -> None:
        self.status[Stat.OLDEST_RUNNABLE_NS], self.status[Stat.LAST_STEP_NS] = int(oldest * 1e9), int(last_step * 1e9)


def test_systemd_is_fed_while_nobody_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    engine.look()
    assert engine.told.lines == ["WATCHDOG=1"] and not engine.killed
    engine.children[0].last_sign = NOW - 200
    engine.look(NOW + 2)
    assert engine.killed == ["scheduler"] and engine.told.lines == ["WATCHDOG=1"]
    assert engine.children[0].condemned == "gave no heartbeat for 202 s"


def test_a_stall_of_all_steps_costs_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    long_ago = NOW - STALL_SECONDS - 1
    for oldest, last_step in ((0, long_ago), (NOW - 5, long_ago), (long_ago, NOW - 5)):
        engine.runnable(oldest, last_step)
        engine.look()
        assert not engine.killed, "a request has waited, or no step has come, for a moment only"
    engine.runnable(long_ago, long_ago)
    engine.children[2].ready_since = NOW - 5
    engine.look()
    assert not engine.killed, "a worker that has just become ready needs its time"
    engine.children[2].ready_since, engine.children[0].ready = NOW - 2000, False
    engine.look()
    assert not engine.killed, "nothing can run before all are ready"
    engine.children[0].ready = True
    engine.look()
    assert engine.killed == ["worker 0"] and engine.children[1].condemned == "finished no step for 600 s"


def test_a_supervisor_that_slept_condemns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    engine.look(NOW + 1000)
    assert not engine.killed
