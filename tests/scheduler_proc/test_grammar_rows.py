"""Rows under a grammar in the scheduler's core, with a toy desk: what they wait for, and what they leave alone."""

from __future__ import annotations

import random

from ipc.arena import PlanHeader, RowFlag
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


def test_rows_without_a_grammar_take_part_in_every_step() -> None:
    """Under overlap a row under a grammar takes part in every other step; nobody else's steps change for it."""
    sim = Simulation()
    free = sim.submit([5, 6, 8], max_tokens=30, ignore_eos=True)
    bound = sim.submit([5, 6, 7], max_tokens=20, grammar=toy_grammar(*SETS * 2))
    free_steps = bound_steps = steps = 0
    while not sim.heard[FRONTEND, bound].finished:
        sim.serve()
        while sim.plan():
            plan = sim.last_plan
            count = int(plan.header[PlanHeader.NUM_ROWS])
            steps += 1
            flags = plan.flags[:count].tolist()
            bound_steps += sum(bool(flag & RowFlag.GRAMMAR) for flag in flags)
            free_steps += sum(not flag & RowFlag.GRAMMAR for flag in flags)
            assert plan.header[PlanHeader.NUM_MASKS] == sum(bool(flag & RowFlag.GRAMMAR) for flag in flags)
        sim.apply()
    assert free_steps == steps and bound_steps == 12 and steps <= 26
    sim.abort(free)
    sim.run()
    sim.check_outputs()


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
            waiting += sum(request.num_preemptions > 0 for request in sim.scheduler._held)
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
