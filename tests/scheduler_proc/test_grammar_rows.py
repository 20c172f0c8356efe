"""Rows under a grammar in the scheduler's core, with a toy desk: what they wait for, and what they leave alone."""

from __future__ import annotations

import random

import pytest

from ipc.arena import NUM_SLOTS, PlanColumns, PlanHeader, RowFlag
from ipc.grammar import Grammar, GrammarKind
from ipc.messages import FinishReason, RefuseCode
from tests.scheduler_proc.simulation import FRONTEND, Simulation, ids, make_config, toy_grammar

SETS = [[10 + at, 30 + at, 50] for at in range(6)]


def test_tokens_come_from_the_sets_and_the_end_is_a_stop() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    assert len(heard.tokens) == 6 and all(token in allowed for token, allowed in zip(heard.tokens, SETS))
    assert heard.reason is FinishReason.STOP and heard.finished[0].stop_token == -1
    sim.check_outputs()


def test_length_cuts_a_grammar() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=4, grammar=toy_grammar(*SETS))
    sim.run()
    assert (len(sim.heard[FRONTEND, handle].tokens), sim.heard[FRONTEND, handle].reason) == (4, FinishReason.LENGTH)


def test_a_request_waits_while_its_grammar_compiles_and_others_go_on() -> None:
    sim = Simulation()
    slow = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
    quick = sim.submit([5, 6, 8], max_tokens=5, ignore_eos=True)
    orders = sim.scheduler.orders()
    assert [order.first for order in orders] == [True] and orders[0].constraint.request.waiting_on == {"grammar"}
    for _ in range(12):
        while sim.plan():
            pass
        sim.apply()
    assert sim.heard[FRONTEND, quick].finished and not sim.heard[FRONTEND, slow].tokens
    assert sim.scheduler.num_requests == sim.scheduler.num_waiting == 1
    sim.desk.orders = orders
    sim.run()
    assert sim.heard[FRONTEND, slow].finished


def num_masks(plan: PlanColumns) -> int:
    return sum(bool(flag & RowFlag.GRAMMAR) for flag in plan.flags[: int(plan.header[PlanHeader.NUM_ROWS])].tolist())


@pytest.mark.parametrize("overlap", [True, False])
def test_all_rows_take_part_in_every_step(overlap: bool) -> None:
    """Under overlap the end of a grammar is found one step late, as a stop token is."""
    sim = Simulation(make_config(overlap=overlap))
    free = sim.submit([5, 6, 8], max_tokens=30, ignore_eos=True)
    bound = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS * 2))
    steps = 0
    while not sim.heard[FRONTEND, bound].finished:
        sim.serve()
        while sim.plan():
            plan = sim.last_plan
            if num_masks(plan):
                steps += 1
                assert plan.header[PlanHeader.NUM_ROWS] == 2 and plan.header[PlanHeader.NUM_MASKS] == 1
                assert plan.header[PlanHeader.MASKS_FOLLOW] == (overlap and steps > 1)
        sim.apply()
    assert steps == 12 + overlap
    sim.abort(free)
    sim.run()
    sim.check_outputs()


def test_a_step_waits_for_its_masks_and_the_next_one_is_planned() -> None:
    """The desk answers late: two steps are out, the first of which cannot end, and nothing else stands still."""
    sim = Simulation()
    bound = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
    free = sim.submit([5, 6, 8], max_tokens=20, ignore_eos=True)
    sim.turn()
    assert sim.apply() is False and sim.scheduler.num_in_flight == 1
    assert sim.plan() and not sim.scheduler.may_plan
    assert sim.apply() is False and sim.scheduler.masked() == []
    sim.serve()
    assert sim.apply() and [len(sim.heard[FRONTEND, handle].tokens) for handle in (bound, free)] == [2, 2]
    sim.run()
    sim.check_outputs()


def test_nobody_waits_for_the_masks_of_rows_that_are_gone() -> None:
    """A row leaves while two steps await its masks: both may end, in order; its tokens in them are nobody's."""
    for leave in (0, 1):
        sim = Simulation()
        bound = [sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS)) for _ in range(2)]
        free = sim.submit([5, 6, 8], max_tokens=20, ignore_eos=True)
        sim.turn()
        sim.plan()
        steps = list(sim.in_flight)
        sim.abort(bound[leave])
        assert sim.scheduler.masked() == [], "the other row's mask is still to come"
        sim.abort(bound[1 - leave])
        assert sim.scheduler.masked() == steps and sim.scheduler.masked() == []
        sim.masked.update(steps)
        for step in steps:
            masks = sim.slots[step % NUM_SLOTS][0].masks[:2]
            assert (masks[:, 0] == 1).all() and not masks[:, 1:].any()
        sim.run()
        assert [len(sim.heard[FRONTEND, handle].tokens) for handle in (*bound, free)] == [1, 1, 20]


def test_masks_are_told_of_in_the_order_of_steps() -> None:
    """Rows that only the second step awaits are gone; the first still waits, so the second is not told of before it."""
    sim = Simulation()
    last = sim.submit([5, 6, 7], max_tokens=2, grammar=toy_grammar(*SETS))
    more = sim.submit([5, 6, 7], max_tokens=9, grammar=toy_grammar(*SETS))
    sim.turn()
    sim.plan()
    first, second = sim.in_flight
    assert [sim.slots[step % NUM_SLOTS][0].header[PlanHeader.NUM_MASKS] for step in (first, second)] == [2, 1]
    sim.abort(more)
    assert sim.scheduler.masked() == []
    sim.abort(last)
    assert sim.scheduler.masked() == [first, second]
    sim.masked.update((first, second))
    sim.run()


def test_a_bad_grammar_is_refused_after_all() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], grammar=toy_grammar())
    other = sim.submit([5, 6, 7], ignore_eos=True)
    sim.run()
    refused = sim.refused[FRONTEND, handle]
    assert refused.code is RefuseCode.INVALID and refused.param == "structured_outputs" and "no sets" in refused.message
    assert (FRONTEND, handle) not in sim.heard and sim.heard[FRONTEND, other].finished
    sim.submit([5], handle=handle, request_id=f"r{handle}")
    sim.run()


def test_too_long_a_grammar_is_refused_at_once() -> None:
    sim = Simulation()
    _, refused = sim.try_submit([5], grammar=Grammar(GrammarKind.REGEX, "a" * 200_000, param="guided_regex"))
    assert refused is not None and refused.param == "guided_regex" and "200000" in refused.message


def test_a_failing_mask_ends_one_request() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
    other = sim.submit([5, 6, 7], max_tokens=20, ignore_eos=True)
    sim.desk.fails_at = 3
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    assert heard.reason is FinishReason.ERROR and heard.finished[0].error == "told to fail" and len(heard.tokens) == 3
    assert sim.heard[FRONTEND, other].reason is FinishReason.LENGTH


def test_rows_under_a_grammar_are_limited_and_do_not_block_the_queue() -> None:
    sim = Simulation(make_config(grammar_rows=2))
    bound = [sim.submit([5, 6, at], max_tokens=20, grammar=toy_grammar(*SETS)) for at in range(5)]
    free = sim.submit([5, 6, 8], max_tokens=3, ignore_eos=True)
    sim.serve()
    sim.plan()
    assert sim.last_plan.header[PlanHeader.NUM_MASKS] == 2 and sim.last_plan.header[PlanHeader.NUM_ROWS] == 3
    sim.run()
    assert all(sim.heard[FRONTEND, handle].finished for handle in [*bound, free])
    sim.check_outputs()


def test_resubmitted_after_the_schedulers_death() -> None:
    """The desk is given what was emitted; even a request that had said everything ends as it should."""
    for known in (0, 1, 3, 5, 6):
        whole = Simulation()
        first = whole.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
        whole.run()
        tokens = whole.heard[FRONTEND, first].tokens
        sim = Simulation()
        handle = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS), emitted=ids(*tokens[:known]))
        sim.run()
        assert sim.heard[FRONTEND, handle].tokens == tokens and sim.heard[FRONTEND, handle].reason is FinishReason.STOP


def test_lost_workers_and_preemption_cost_no_state() -> None:
    """Rows under grammars lose their places while their masks are being computed, and while they are not."""
    preempted = waiting = 0
    for seed in range(40):
        sim = Simulation(make_config(rows=6, block_size=2), num_blocks=24)
        sim.desk.rng = random.Random(seed) if seed % 2 else None
        for at in range(6):
            sim.submit([5, 6, 7, 8, at], max_tokens=20, seed=at, grammar=toy_grammar(*SETS * 3) if at % 3 else None)
        for turn in range(60):
            sim.turn()
            waiting += sum(request.num_preemptions > 0 for request in sim.scheduler.lifecycle.held)
            if turn in (9, 21):
                sim.lose_workers()
        sim.run()
        sim.check_outputs()
        preempted += sum(ended.num_preemptions for heard in sim.heard.values() for ended in heard.finished if heard.submit.grammar)
    assert preempted > 20 and waiting > 5, f"too easy to prove anything: {preempted}, {waiting}"


def test_abort_at_any_time() -> None:
    for turns in range(12):
        sim = Simulation()
        sim.desk.rng = random.Random(turns)
        handles = [sim.submit([5, 6, at], max_tokens=20, grammar=toy_grammar(*SETS)) for at in range(4)]
        for _ in range(turns):
            sim.turn()
        for handle in handles:
            sim.abort(handle)
        sim.run()
        assert all(sim.heard[FRONTEND, handle].finished for handle in handles)


def test_no_step_waits_for_a_slow_mask() -> None:
    """A row with slow masks gives its place back while one is computed; alone, it keeps it, for nobody is held up."""
    sim = Simulation()
    sim.desk.slow = 1.0
    slow = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS))
    free = sim.submit([5, 6, 8], max_tokens=20, ignore_eos=True)
    orders = []
    while not sim.heard[FRONTEND, free].finished:
        orders += sim.scheduler.orders()
        if not sim.heard[FRONTEND, slow].tokens:
            sim.desk.orders, orders = orders, []  # the first mask is there; the others never come
            sim.serve()
        while sim.plan():
            pass
        assert sim.apply(), "a step waits"
    assert len(sim.heard[FRONTEND, slow].tokens) == 1 and sim.scheduler.counters.preemptions == 1
    sim.desk.orders = orders
    sim.run()
    assert len(sim.heard[FRONTEND, slow].tokens) == 6 and sim.scheduler.counters.preemptions == 1
    sim.check_outputs()
