"""What the scheduler computes once: prefixes of prompts and of answers."""

from __future__ import annotations

from tests.scheduler_proc.simulation import FRONTEND, SAMPLE, Simulation, make_config, plan_rows


def test_a_prefix_is_computed_once() -> None:
    sim = Simulation()
    prompt = list(range(3, 24))
    sim.submit(prompt, max_tokens=1)
    sim.run()
    sim.submit(prompt + [1], max_tokens=1)
    sim.plan()
    assert plan_rows(sim) == [(0, 20, 2, SAMPLE)]


def test_a_full_hit_computes_the_last_block_again_in_a_private_one() -> None:
    sim = Simulation()
    prompt = list(range(3, 23))  # five full blocks
    sim.submit(prompt, max_tokens=4)
    sim.run()
    sim.submit(prompt, max_tokens=4)
    sim.plan()
    assert plan_rows(sim) == [(0, 16, 4, SAMPLE)]
    sim.run()
    sim.check_outputs()


def test_outputs_are_cached_at_the_end() -> None:
    sim = Simulation()
    handle = sim.submit(list(range(3, 13)), max_tokens=10, ignore_eos=True)
    sim.run()
    conversation = list(range(3, 13)) + sim.heard[FRONTEND, handle].tokens + [30]
    sim.submit(conversation, max_tokens=1)
    sim.plan()
    # 20 tokens are known, of which the last was never computed: four full blocks.
    assert plan_rows(sim) == [(0, 16, 5, SAMPLE)]
    sim.run()
    sim.check_outputs()


def test_the_same_prompt_many_times_at_once_is_computed_once() -> None:
    sim = Simulation()
    prompt = list(range(3, 24))
    for seed in range(4):
        sim.submit(prompt, max_tokens=3, seed=seed)
    sim.plan()
    assert plan_rows(sim) == [(0, 0, 21, SAMPLE)]
    sim.plan()
    assert [row[1:3] for row in plan_rows(sim)] == [(21, 1), (20, 1), (20, 1), (20, 1)]
    sim.run()
    sim.check_outputs()


def test_others_do_not_wait_for_somebody_elses_prefix() -> None:
    sim = Simulation()
    prompt = list(range(3, 24))
    for tokens in (prompt, prompt, [50, 51, 52]):
        sim.submit(tokens, max_tokens=3)
    sim.plan()
    assert [row[2] for row in plan_rows(sim)] == [21, 3]


def test_salt_separates() -> None:
    sim = Simulation()
    for salt in ("", "a", "b", "a"):
        sim.submit(list(range(3, 24)), max_tokens=2, cache_salt=salt)
        sim.run()
    assert sim.scheduler.counters.prefix_hits == 20
    sim.check_outputs()


def test_only_what_was_computed_is_cached_after_an_abort() -> None:
    sim = Simulation(make_config(tokens=8))
    prompt = list(range(3, 33))
    handle = sim.submit(prompt, max_tokens=4)
    sim.plan()
    sim.abort(handle)
    sim.submit(prompt, max_tokens=4)
    sim.plan()
    assert plan_rows(sim) == [(0, 8, 8, 0)]
    sim.run()
    sim.check_outputs()


def test_a_block_whose_last_token_is_unknown_is_not_cached() -> None:
    """Aborted with two steps out: position 7 is being computed, and which token stands there nobody here knows."""
    sim = Simulation()
    sim.scheduler.rows.history[:] = 33  # what an earlier owner left in the row
    prompt = list(range(3, 10))
    handle = sim.submit(prompt, max_tokens=9)
    sim.plan()
    sim.plan()
    sim.abort(handle)
    assert len(sim.scheduler.kv.cache) == 1
    sim.submit(prompt + [33, 34], max_tokens=4)
    sim.run()
    sim.check_outputs()


def test_caching_can_be_off() -> None:
    sim = Simulation(make_config(caching=False))
    for _ in range(2):
        sim.submit(list(range(3, 24)), max_tokens=2)
        sim.run()
    assert sim.scheduler.counters.prefix_hits == 0 and len(sim.scheduler.kv.cache) == 0
    sim.check_outputs()
