"""How prompts are cut so that a step takes no longer than it may."""

from __future__ import annotations

import random

import pytest

from ipc.messages import BEHIND_CLIENTS
from scheduler_proc.step_time import LEAST_TOKENS, StepTime
from tests.scheduler_proc.simulation import Simulation, make_config, plan_rows


def test_nothing_is_cut_before_anything_is_known() -> None:
    assert StepTime(0.1).tokens(5, 2048) == 2048


def test_learns_both_parts_of_a_step() -> None:
    time = StepTime(0.25)
    for _ in range(20):
        time.observe(0, 32, 0.05)
        time.observe(200, 32, 0.05 + 200 * 0.001)
    assert time.decode_seconds == pytest.approx(0.05)
    assert time.tokens(32, 2048) == pytest.approx(200, abs=2)
    assert time.tokens(0, 2048) == pytest.approx(250, abs=2)
    assert time.tokens(32, 100) == 100
    assert time.tokens(32, 2048, 0.6) == pytest.approx(100, abs=2)


def test_one_slow_step_changes_little_and_is_forgotten() -> None:
    time = StepTime(0.25)
    time.observe(200, 0, 0.2)
    time.observe(200, 0, 60.0)
    assert time.tokens(0, 2048) > 150
    for _ in range(10):
        time.observe(200, 0, 0.2)
    assert time.tokens(0, 2048) == pytest.approx(250, abs=5)


def test_follows_a_slower_machine() -> None:
    time = StepTime(0.25)
    time.observe(200, 0, 0.02)
    for _ in range(20):
        time.observe(200, 0, 0.4)
    assert time.tokens(0, 2048) == pytest.approx(125, abs=5)


def test_some_tokens_are_always_computed() -> None:
    time = StepTime(0.01)
    time.observe(0, 32, 0.5)
    time.observe(100, 32, 1.0)
    assert time.tokens(32, 2048) == LEAST_TOKENS
    assert time.tokens(32, 8) == 8


def test_short_prompts_and_no_target_teach_nothing() -> None:
    time = StepTime(0.1)
    time.observe(3, 1, 5.0)
    assert time.tokens(1, 2048) == 2048
    unlimited = StepTime(0)
    unlimited.observe(200, 0, 60.0)
    assert unlimited.tokens(1, 2048) == 2048


def timed() -> Simulation:
    """A millisecond a token and a target of 100; what a prompt takes has been learned."""
    sim = Simulation(make_config(rows=8, tokens=512, target_step_ms=100), num_blocks=2000, max_model_len=1000, vocab_size=1000)
    sim.step_ms = float
    sim.submit(range(1, 31), max_tokens=1)
    sim.run()
    return sim


def test_a_prompt_beside_a_running_stream_is_cut() -> None:
    sim = timed()
    sim.submit([5, 6, 7], max_tokens=50)
    sim.turn()
    sim.submit(range(301, 601), max_tokens=2)
    counts = []
    while sum(counts) < 300:
        assert sim.plan()
        counts += [num_new for _, _, num_new, _ in plan_rows(sim) if num_new > 1]
        sim.apply()
    assert len(counts) == 4 and all(80 <= count <= 100 for count in counts[:3]), counts
    sim.run()
    sim.check_outputs()


def test_prompts_that_wait_together_are_not_one_long_step() -> None:
    """The first is computed as soon as can be, and those behind it wait for their own steps only."""
    sim = timed()
    for first in (100, 200, 300, 400):
        sim.submit(range(first, first + 60), max_tokens=2)
    sim.plan()
    assert [num_new for _, _, num_new, _ in plan_rows(sim)] == [60, 40]
    sim.run()
    sim.check_outputs()


def test_a_lone_prompt_is_not_cut() -> None:
    sim = timed()
    sim.submit(range(100, 500), max_tokens=2)
    assert sim.plan() == 400
    sim.run()
    sim.check_outputs()


def test_a_lone_prompt_that_no_client_waits_for_is_cut_small() -> None:
    """A client may come while it is computed, and waits for the steps that are under way."""
    sim = timed()
    sim.submit(range(100, 500), max_tokens=2, priority=BEHIND_CLIENTS)
    assert sim.plan() == LEAST_TOKENS
    sim.run()
    sim.check_outputs()


@pytest.mark.parametrize("seed", range(3))
def test_outputs_do_not_depend_on_how_long_steps_take(seed: int) -> None:
    rng = random.Random(seed)
    sim = Simulation(make_config(rows=8, tokens=256, target_step_ms=5), num_blocks=400, max_model_len=300, vocab_size=1000)
    sim.step_ms = lambda tokens: rng.random() * 10
    for number in range(40):
        prefix = range(1, 1 + rng.choice([0, 40, 90]))
        sim.submit([*prefix, number, *range(7, 7 + rng.randrange(1, 120))], max_tokens=rng.randrange(1, 30))
        if rng.random() < 0.5:
            sim.turn()
    sim.run(5000)
    sim.check_outputs()
