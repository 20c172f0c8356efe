"""Requests that end with their prompt's vector, in the scheduler's core with a toy worker."""

from __future__ import annotations

import numpy as np
import pytest

from ipc.arena import MAX_VECTORS, PlanHeader, RowFlag
from ipc.messages import FinishReason
from scheduler_proc.lifecycle import NOT_FINITE
from tests.paged_toy import toy_vector
from tests.scheduler_proc.simulation import FRONTEND, Simulation, make_config, toy_grammar


def flags_of(sim: Simulation) -> list[int]:
    plan = sim.last_plan
    return [int(flag) for flag in plan.flags[: int(plan.header[PlanHeader.NUM_ROWS])]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_beside_generation_in_chunks(pooling: str) -> None:
    sim = Simulation(make_config(tokens=16, block_size=4), pooling=pooling)
    texts = [[5 + at % 3, *range(6, 40)] for at in range(4)]
    vectors = [sim.submit(text, embed=True) for text in texts]
    others = [sim.submit([5, 6, 7 + at], max_tokens=12) for at in range(3)]
    sim.run()
    sim.check_outputs()
    for handle, text in zip(vectors, texts):
        heard = sim.heard[FRONTEND, handle]
        assert heard.vector == toy_vector(np.array(text), 8).tolist() and heard.tokens == []
        assert heard.reason is FinishReason.STOP and heard.finished[0].num_output == 0
    assert all(sim.heard[FRONTEND, handle].tokens for handle in others)
    assert sim.scheduler.counters.embeddings == 4 and sim.scheduler.kv.pool.num_used == 0
    # A mean needs all tokens computed; the last token's state is the same over a cached prefix.
    again = sim.submit(texts[0], embed=True)
    sim.run()
    started = sim.heard[FRONTEND, again].started
    assert started is not None and started.num_cached == (32 if pooling == "last" else 0)
    sim.check_outputs()


def test_a_row_never_samples_and_never_decodes() -> None:
    sim = Simulation(make_config(tokens=8), pooling="mean")
    sim.submit(list(range(5, 25)), embed=True)
    seen = []
    while sim.plan():
        seen += flags_of(sim)
        sim.apply()
    assert seen == [RowFlag.MEAN, RowFlag.MEAN, RowFlag.MEAN | RowFlag.EMBED]


def test_the_longest_prompt_fills_the_context() -> None:
    sim = Simulation(num_blocks=16)
    length = sim.model.max_model_len
    fits = sim.submit([5] * length, embed=True)
    _, refused = sim.try_submit([5] * (length + 1), embed=True)
    assert refused is not None and refused.param == "prompt" and "65 tokens" in refused.message
    sim.run()
    assert sim.heard[FRONTEND, fits].vector == toy_vector(np.array([5] * length), 8).tolist()


def test_no_more_vectors_in_a_step_than_its_result_holds() -> None:
    sim = Simulation(make_config(rows=2 * MAX_VECTORS, tokens=1024, caching=False), num_blocks=1000)
    handles = [sim.submit([5, 6, 7, 8, at % 60], embed=True) for at in range(2 * MAX_VECTORS)]
    sim.plan()
    assert sum(bool(flag & RowFlag.EMBED) for flag in flags_of(sim)) == MAX_VECTORS
    sim.run()
    assert all(sim.heard[FRONTEND, handle].vector for handle in handles)
    sim.check_outputs()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_lost_workers_and_preemption(pooling: str) -> None:
    for turns in range(1, 8):
        sim = Simulation(make_config(tokens=8, policy="priority"), num_blocks=12, pooling=pooling)
        handle = sim.submit(list(range(5, 35)), embed=True, priority=2)
        for turn in range(turns):
            sim.turn()
            if turn == 1:
                sim.submit(list(range(5, 30)), max_tokens=4, priority=0)
        sim.lose_workers()
        sim.run()
        sim.check_outputs()
        assert sim.heard[FRONTEND, handle].vector is not None


def test_abort_and_numbers_that_are_none() -> None:
    sim = Simulation(make_config(tokens=8))
    gone = sim.submit(list(range(5, 35)), embed=True)
    bad = sim.submit([7, 6], embed=True)
    sim.poison = lambda tokens, setup: True
    sim.plan()
    sim.abort(gone)
    sim.run()
    assert sim.heard[FRONTEND, gone].vector is None and sim.heard[FRONTEND, gone].reason is FinishReason.ABORT
    heard = sim.heard[FRONTEND, bad]
    assert heard.reason is FinishReason.ERROR and heard.finished[0].error == NOT_FINITE and heard.vector is None


def test_a_vector_follows_no_grammar() -> None:
    sim = Simulation()
    _, refused = sim.try_submit([5, 6], embed=True, grammar=toy_grammar([7]))
    assert refused is not None and refused.param == "structured_outputs"
