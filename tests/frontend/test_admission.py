"""What the status records say about taking a request."""

from __future__ import annotations

import time

import pytest

from frontend.admission import SCHEDULER_STALE_SECONDS, STEP_STALE_SECONDS, Admission
from ipc.arena import Arena, Dimensions, Stat, State
from ipc.config import ChildSpec, Config, SchedulerConfig
from ipc.errors import EngineDeadError, QueueFullError
from tests.fakes import small_model


@pytest.fixture
def arena() -> Arena:
    return Arena.create(Dimensions(rows=1, tokens=1, blocks_per_row=1, block_updates=1, setup_bytes=64, logprobs=1))


def admission(arena: Arena, ready: bool = True) -> Admission:
    config = Config(scheduler=SchedulerConfig(max_queued_requests=10))
    spec = ChildSpec(
        role="frontend", index=0, epoch=1, scheduler_epoch=1, runtime_dir="", device="cpu", config=config, model=small_model(), fds={}
    )
    if ready:
        record = arena.status("scheduler")
        record[Stat.STATE], record[Stat.HEARTBEAT_NS] = State.READY, time.monotonic_ns()
    return Admission(spec, arena)


def ago(seconds: float) -> int:
    return time.monotonic_ns() - int(seconds * 1e9)


def test_loading_then_serving_then_restarting(arena: Arena) -> None:
    subject = admission(arena, ready=False)
    with pytest.raises(EngineDeadError, match="loading"):
        subject.check(1, 0)
    subject = admission(arena)
    subject.check(1, 0)
    arena.status("scheduler")[Stat.STATE] = State.STARTING
    subject.check(1, 0)  # waits for the new scheduler instead of being refused
    assert subject.health()[0] == "loading"


def test_the_queue_has_an_end_and_an_honest_time(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    subject = admission(arena)
    arena.status("scheduler")[Stat.NUM_WAITING] = 9
    subject.check(1, 0)
    with pytest.raises(QueueFullError):
        subject.check(2, 0)
    now += 4.0
    arena.status("scheduler")[Stat.NUM_WAITING] = 10
    # 8 requests have ended in about 4 s: room for 6 more takes about 3 s.
    with pytest.raises(QueueFullError) as caught:
        subject.check(6, 8)
    assert 3 <= caught.value.retry_after <= 4


@pytest.mark.parametrize(
    "word, seconds, expected",
    [
        (Stat.HEARTBEAT_NS, SCHEDULER_STALE_SECONDS + 1, "scheduler does not respond"),
        (Stat.OLDEST_RUNNABLE_NS, STEP_STALE_SECONDS + 1, "no step for too long"),
        (Stat.OLDEST_RUNNABLE_NS, 1, "ok"),
    ],
)
def test_health_sees_what_stands_still(arena: Arena, word: Stat, seconds: float, expected: str) -> None:
    subject = admission(arena)
    arena.status("scheduler")[word] = ago(seconds)
    assert subject.health()[0] == expected


def test_a_long_request_is_no_stall_while_steps_are_done(arena: Arena) -> None:
    subject = admission(arena)
    record = arena.status("scheduler")
    record[Stat.OLDEST_RUNNABLE_NS], record[Stat.LAST_STEP_NS] = ago(10_000), ago(1)
    assert subject.health()[0] == "ok"


def test_a_worker_that_stands_still(arena: Arena) -> None:
    subject = admission(arena)
    record = arena.status("worker", 0)
    record[Stat.PID], record[Stat.HEARTBEAT_NS] = 1, ago(1000)
    assert subject.health()[0] == "worker does not respond"


def test_draining(arena: Arena) -> None:
    subject = admission(arena)
    subject.draining = True
    with pytest.raises(EngineDeadError, match="shutting down"):
        subject.check(1, 0)
    assert subject.health()[0] == "draining"
