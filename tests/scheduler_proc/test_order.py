"""Who runs first, and who gives way."""

from __future__ import annotations

import pytest

from ipc.messages import BEHIND_CLIENTS
from tests.scheduler_proc.simulation import FRONTEND, SAMPLE, Simulation, make_config, plan_rows


def test_more_requests_than_rows_wait_in_order() -> None:
    sim = Simulation(make_config(rows=2, tokens=16))
    handles = [sim.submit([5, at], max_tokens=3, ignore_eos=True) for at in range(5)]
    ends: list[int] = []
    while len(ends) < 5:
        sim.turn()
        ends += [handle for handle in handles if sim.heard[FRONTEND, handle].finished and handle not in ends]
    assert ends == handles
    sim.check_outputs()


def test_priority_goes_before_arrival() -> None:
    sim = Simulation(make_config(rows=1, tokens=16, policy="priority"))
    late, soon, also = (sim.submit([5, at], max_tokens=2, ignore_eos=True, priority=p) for at, p in enumerate((5, 1, 1)))
    ends: list[int] = []
    while len(ends) < 3:
        sim.turn()
        ends += [handle for handle in (late, soon, also) if sim.heard[FRONTEND, handle].finished and handle not in ends]
    assert ends == [soon, also, late]


def test_a_more_urgent_request_takes_a_running_ones_place() -> None:
    sim = Simulation(make_config(rows=1, tokens=16, policy="priority"))
    slow = sim.submit([5, 6], max_tokens=30, ignore_eos=True, priority=1)
    for _ in range(5):
        sim.turn()
    urgent = sim.submit([5, 7], max_tokens=2, ignore_eos=True, priority=0)
    for _ in range(5):
        sim.turn()
    assert sim.heard[FRONTEND, urgent].finished and not sim.heard[FRONTEND, slow].finished
    sim.run()
    sim.check_outputs()
    assert sim.heard[FRONTEND, slow].finished[0].num_preemptions == 1


def test_under_fcfs_priority_means_nothing() -> None:
    sim = Simulation(make_config(rows=1, tokens=16))
    first, second = sim.submit([5, 6], priority=9), sim.submit([5, 7], priority=0)
    while not sim.heard[FRONTEND, second].finished:
        sim.turn()
    assert sim.heard[FRONTEND, first].finished


# What no client waits for


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_client_takes_the_row_of_what_no_client_waits_for(policy: str) -> None:
    sim = Simulation(make_config(rows=2, tokens=16, policy=policy))
    old = sim.submit([5, 5], max_tokens=60, ignore_eos=True)
    behind = [sim.submit([5, at], max_tokens=60, ignore_eos=True, priority=BEHIND_CLIENTS) for at in (6, 7)]
    for _ in range(5):
        sim.turn()
    client = sim.submit([5, 8], max_tokens=2, ignore_eos=True)
    sim.plan()
    assert [start for _, start, _, flags in plan_rows(sim) if flags == SAMPLE] == [0], "it did not start in the very next step"
    sim.run()
    sim.check_outputs()
    assert [sim.heard[FRONTEND, each].finished[0].num_preemptions for each in (old, client, *behind)] == [0, 0, 1, 0]


def test_a_client_takes_the_blocks_of_what_no_client_waits_for() -> None:
    sim = Simulation(make_config(rows=8, tokens=64, block_size=4), num_blocks=10)
    behind = sim.submit(list(range(3, 35)), max_tokens=3, ignore_eos=True, priority=BEHIND_CLIENTS)
    sim.turn()
    client = sim.submit([5] * 20, max_tokens=2, ignore_eos=True)
    while not sim.heard[FRONTEND, client].finished:
        assert not sim.heard[FRONTEND, behind].finished
        sim.turn()
    sim.run()
    sim.check_outputs()
    assert sim.heard[FRONTEND, behind].finished[0].num_preemptions == 1


def test_a_clients_prompt_goes_before_a_half_computed_one_that_nobody_waits_for() -> None:
    sim = Simulation(make_config(rows=4, tokens=8))
    behind = [sim.submit([at] * 40, max_tokens=2, priority=BEHIND_CLIENTS) for at in (5, 6)]
    sim.turn()
    client = sim.submit([7] * 12, max_tokens=2, ignore_eos=True)
    sim.plan()
    sim.apply()
    [(row, start, count, _)] = plan_rows(sim)
    assert (start, count) == (0, 8) and sim.scheduler.rows.requests[row].handle == client
    sim.plan()
    first, second, *_ = plan_rows(sim)
    assert (first[1], first[2], first[3]) == (8, 4, SAMPLE), "it did not come to its end first"
    assert second[1] > 0, "a new prompt was begun before the half computed one went on"
    sim.run()
    sim.check_outputs()
    assert all(sim.heard[FRONTEND, each].finished[0].num_preemptions == 0 for each in behind)


def test_what_no_client_waits_for_never_displaces_its_like() -> None:
    sim = Simulation(make_config(rows=1, tokens=16))
    first, second = (sim.submit([5, at], max_tokens=9, ignore_eos=True, priority=BEHIND_CLIENTS) for at in (6, 7))
    while not sim.heard[FRONTEND, first].finished:
        assert not sim.heard[FRONTEND, second].tokens
        sim.turn()
    sim.run()
    assert sim.scheduler.counters.preemptions == 0
