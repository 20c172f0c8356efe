"""When blocks, or a plan's columns, do not suffice for all."""

from __future__ import annotations

from ipc.messages import FinishReason
from tests.scheduler_proc.simulation import FRONTEND, Simulation, make_config, plan_rows, scripted, setups


def test_preemption_by_recompute_loses_and_repeats_nothing() -> None:
    sim = Simulation(num_blocks=10)
    handles = [sim.submit([5, 6, 7, at], max_tokens=24, ignore_eos=True) for at in range(3)]
    sim.run()
    sim.check_outputs()
    assert sim.scheduler.counters.preemptions > 0
    assert sim.heard[FRONTEND, handles[0]].finished[0].num_preemptions == 0, "the first to come was the victim"


def test_workers_lost_when_all_blocks_are_full() -> None:
    """The one running request has a token more than there are blocks for: it could never be computed again."""
    sim = Simulation(num_blocks=4, next_token=scripted())
    handle, later = sim.submit([5] * 6, max_tokens=50), sim.submit([5, 6], max_tokens=2)
    while len(sim.heard[FRONTEND, handle].tokens) < 11:
        while sim.plan():
            pass
        sim.apply()
    assert not sim.heard[FRONTEND, handle].finished
    sim.lose_workers()
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    assert heard.reason is FinishReason.LENGTH and len(heard.tokens) == 11
    assert len(sim.heard[FRONTEND, later].tokens) == 2


def test_alone_and_out_of_blocks_ends_by_length() -> None:
    sim = Simulation(num_blocks=4, next_token=scripted())
    handle = sim.submit([5] * 6, max_tokens=50)
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    # 16 places, and the token after the last one.
    assert heard.reason is FinishReason.LENGTH and len(heard.tokens) == 11


def test_cached_blocks_are_evicted_for_running_requests() -> None:
    sim = Simulation(num_blocks=12)
    for at in range(6):
        sim.submit([at + 3] * 30, max_tokens=4)
        sim.run()
    assert sim.scheduler.kv.cache.num_evicted > 0
    sim.check_outputs()


def test_setups_that_do_not_fit_into_one_plan_come_in_the_next() -> None:
    sim = Simulation(make_config(rows=64, tokens=4096), num_blocks=500)
    words = [[3] * 1000] * 40
    for at in range(20):
        sim.submit([5, at + 3], max_tokens=2, bad_words=words)
    sim.plan()
    assert 0 < len(setups(sim)) < 20
    sim.run()
    sim.check_outputs()


def test_block_updates_beyond_a_plans_columns_come_in_the_next() -> None:
    sim = Simulation(make_config(rows=40, tokens=64), num_blocks=1000)
    prompt = list(range(3, 63))
    sim.submit(prompt, max_tokens=1)
    sim.run()
    for at in range(30):
        sim.submit(prompt, max_tokens=3, seed=at)
    sim.plan()
    assert 1 < len(plan_rows(sim)) < 30
    sim.run()
    sim.check_outputs()
