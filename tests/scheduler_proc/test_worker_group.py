"""Who counts as standing, and when."""

from __future__ import annotations

import msgspec

from ipc.messages import KVReady, KVSize, StepPlan, WorkerReady
from scheduler_proc.worker_group import WorkerGroup


class Sent:
    """A channel that only remembers."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, msgspec.Struct]] = []

    def send(self, message: msgspec.Struct, peer: str = "") -> bool:
        self.messages.append((peer, message))
        return True

    def forget(self, peer: str) -> None:
        pass


class Standing:
    """A group of two whose events are recorded."""

    def __init__(self, num_blocks: int = 0) -> None:
        self.sent = Sent()
        self.stood: list[int] = []
        self.group = WorkerGroup(self.sent, 2, num_blocks, self.stood.append)

    def bring_up(self, *epochs: int) -> None:
        for rank, epoch in enumerate(epochs):
            self.group.ready(f"worker.{rank}.{epoch}", WorkerReady(rank, 100 + rank, 0))
        for rank, epoch in enumerate(epochs):
            self.group.allocated(f"worker.{rank}.{epoch}", KVReady(rank))


def test_all_ranks_get_the_least_of_all() -> None:
    standing = Standing()
    standing.group.ready("worker.1.6", WorkerReady(1, 80, 0))
    assert standing.sent.messages == []
    standing.group.ready("worker.0.5", WorkerReady(0, 100, 0))
    assert sorted(standing.sent.messages) == [("worker.0.5", KVSize(80)), ("worker.1.6", KVSize(80))]
    standing.group.allocated("worker.0.5", KVReady(0))
    assert not standing.group.standing
    standing.group.allocated("worker.1.6", KVReady(1))
    assert standing.group.standing and standing.stood == [80]


def test_a_configured_size_is_a_wish_within_what_they_hold() -> None:
    for wanted, got in ((30, 30), (1000, 100)):
        standing = Standing(wanted)
        standing.bring_up(5, 6)
        assert standing.stood == [got]


def test_doorbells_go_to_all_and_rank_0_reports() -> None:
    standing = Standing()
    standing.bring_up(5, 6)
    standing.sent.messages.clear()
    standing.group.ring(7, 3)
    assert sorted(standing.sent.messages) == [("worker.0.5", StepPlan(7, 3)), ("worker.1.6", StepPlan(7, 3))]
    assert standing.group.reports("worker.0.5") and not standing.group.reports("worker.1.6")


def test_one_death_is_everybodys_and_all_must_come_back() -> None:
    standing = Standing()
    standing.bring_up(5, 6)
    assert standing.group.lost("worker.1.6")
    assert not standing.group.standing and not standing.group.reports("worker.0.5")
    assert not standing.group.lost("worker.0.5"), "the same loss, told twice"
    standing.group.ready("worker.1.8", WorkerReady(1, 100, 0))
    standing.group.ready("worker.0.5", WorkerReady(0, 100, 0))  # a late word of the dead
    assert not standing.group.standing
    standing.bring_up(7, 8)
    assert standing.stood == [100, 100]


def test_a_successor_tells_of_a_death_before_the_supervisor_does() -> None:
    standing = Standing()
    standing.bring_up(5, 6)
    assert standing.group.ready("worker.0.7", WorkerReady(0, 90, 0))
    assert not standing.group.standing
    assert not standing.group.lost("worker.0.5") and not standing.group.lost("worker.1.6")
    standing.group.ready("worker.1.8", WorkerReady(1, 90, 0))
    standing.group.allocated("worker.0.7", KVReady(0))
    standing.group.allocated("worker.1.8", KVReady(1))
    assert standing.stood == [100, 90]


def test_strangers_are_counted() -> None:
    standing = Standing()
    standing.group.ready("worker.7.9", WorkerReady(7, 100, 0))
    standing.group.allocated("worker.0.9", KVReady(0))
    assert standing.group.num_stray == 2 and not standing.group.standing
