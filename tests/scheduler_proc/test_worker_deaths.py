"""Workers die: what ran is computed again, what kills them is found."""

from __future__ import annotations

import pytest

from ipc.errors import IllegalTransitionError, ProtocolError
from ipc.messages import FinishReason
from scheduler_proc.request import Status
from tests.scheduler_proc.simulation import FRONTEND, Simulation, make_config


def test_workers_lost_and_replayed() -> None:
    sim = Simulation()
    for at in range(12):
        sim.submit([5, 6, 7, 8, at], max_tokens=20, seed=at)
    for _ in range(5):
        sim.turn()
    sim.plan()
    sim.lose_workers()
    assert sim.scheduler.num_running == 0 and len(sim.scheduler.kv.cache) == 0
    assert sim.scheduler.kv.pool.num_free == 64
    sim.run()
    sim.check_outputs()


def test_a_request_that_kills_workers_is_isolated_and_failed() -> None:
    sim = Simulation(make_config(rows=4))
    killer = sim.submit([50, 51], max_tokens=9, seed=66)
    others = [sim.submit([5, at], max_tokens=40, ignore_eos=True, seed=at) for at in range(3)]
    deaths = 0
    for _ in range(300):
        while sim.plan():
            pass
        if any(request.seed == 66 for request in sim.scheduler.flights.requests(sim.scheduler.rows)):
            if deaths == 2:
                assert sim.scheduler.num_running == 1, "the suspect does not run alone"
            deaths += 1
            sim.lose_workers()
        sim.apply()
        if not sim.scheduler.num_requests:
            break
    finished = sim.heard[FRONTEND, killer].finished[0]
    assert deaths == 3 and finished.reason is FinishReason.ERROR and "3 times" in finished.error
    del sim.heard[FRONTEND, killer]
    assert all(sim.heard[FRONTEND, handle].reason is FinishReason.LENGTH for handle in others)
    sim.check_outputs()


def test_innocent_suspects_are_cleared() -> None:
    sim = Simulation()
    for at in range(3):
        sim.submit([5, at], max_tokens=30, ignore_eos=True, seed=at)
    for _ in range(2):
        sim.turn()
        sim.plan()
        sim.lose_workers()
    most = 0
    while sim.scheduler.num_requests:
        sim.turn()
        most = max(most, sim.scheduler.num_running)
    assert most == 3, "they never ran together again"
    sim.check_outputs()


def test_smaller_workers_after_a_death() -> None:
    sim = Simulation()
    fits, too_long = sim.submit([5] * 8, max_tokens=4), sim.submit([6] * 40, max_tokens=4)
    sim.turn()
    sim.lose_workers()
    sim.scheduler.resize(6)
    sim.toy = sim.new_toy(6)
    sim.collect()
    assert sim.heard[FRONTEND, too_long].reason is FinishReason.ERROR
    del sim.heard[FRONTEND, too_long]
    sim.run()
    assert sim.heard[FRONTEND, fits].finished
    sim.check_outputs()


def test_a_result_that_is_not_due_is_an_error() -> None:
    sim = Simulation()
    sim.submit([5])
    sim.plan()
    result = sim.slots[0][1]
    result.header[0] = 77
    with pytest.raises(ProtocolError):
        sim.scheduler.apply(result, 0)


def test_illegal_transitions_raise() -> None:
    sim = Simulation()
    sim.submit([5])
    request = sim.scheduler.waiting.first()
    assert request is not None
    with pytest.raises(IllegalTransitionError):
        request.become(Status.PREEMPTED)
