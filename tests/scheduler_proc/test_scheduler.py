"""Each thing the scheduler promises, one at a time. Outputs are compared with those of a request that runs alone (simulation.py)."""

from __future__ import annotations

import numpy as np
import pytest

from ipc.arena import PlanHeader, RowSetup
from ipc.messages import FinishReason, RefuseCode
from scheduler_proc.lifecycle import NOT_FINITE
from tests.scheduler_proc.simulation import DEVICE, EOS, FRONTEND, SAMPLE, VOCAB, Simulation, ids, make_config, plan_rows, scripted, setups

# Steps


def test_prefill_then_decode_with_device_tokens() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=3)
    assert sim.plan() == 3
    assert plan_rows(sim) == [(0, 0, 3, SAMPLE)]
    assert sim.last_plan.token_ids[:3].tolist() == [5, 6, 7]
    assert sim.plan() == 1
    assert plan_rows(sim) == [(0, 3, 1, DEVICE)] and sim.last_plan.header[PlanHeader.NUM_TOKEN_IDS] == 0
    assert sim.plan() == 0, "three steps in flight"
    sim.run()
    sim.check_outputs()
    assert len(sim.heard[FRONTEND, handle].tokens) == 3


def test_without_overlap_one_step_is_out() -> None:
    sim = Simulation(make_config(overlap=False))
    sim.submit([5, 6, 7])
    assert sim.plan() and not sim.plan()
    sim.run()
    sim.check_outputs()


def test_no_step_beyond_max_tokens() -> None:
    sim = Simulation(next_token=scripted())
    sim.submit([5, 6, 7], max_tokens=2)
    sim.run()
    assert sim.step == 2 and sim.toy.tokens_computed == 4


def test_max_tokens_none_goes_to_the_end_of_the_context() -> None:
    sim = Simulation(next_token=scripted())
    handle = sim.submit([5] * 10, max_tokens=None)
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    assert len(heard.tokens) == sim.model.max_model_len - 10 and heard.reason is FinishReason.LENGTH


def test_a_stop_found_late_costs_one_discarded_token() -> None:
    sim = Simulation(next_token=scripted(9, 9, EOS))
    handle = sim.submit([5, 6, 7], max_tokens=20)
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    assert heard.tokens == [9, 9, EOS] and heard.finished[0].stop_token == EOS and heard.reason is FinishReason.STOP
    assert sim.toy.tokens_computed == 3 + 3
    sim.check_outputs()


def test_a_late_result_is_not_taken_for_the_rows_next_owner() -> None:
    """With one row: the first request stops while its next step is out, the second takes the row before that step's result comes."""
    sim = Simulation(make_config(rows=1, tokens=16), next_token=scripted(9, EOS))
    first, second = sim.submit([5, 6, 7]), sim.submit([8, 9])
    sim.run()
    assert sim.heard[FRONTEND, first].tokens == sim.heard[FRONTEND, second].tokens == [9, EOS]


def test_prompts_are_computed_in_chunks_and_decodes_come_first() -> None:
    sim = Simulation(make_config(tokens=10, rows=4), next_token=scripted())
    sim.submit([5], max_tokens=30)
    sim.turn()
    long = sim.submit(list(range(3, 28)), max_tokens=2)
    chunks = []
    for _ in range(6):
        sim.plan()
        assert plan_rows(sim)[0][3] == DEVICE, "a running request was passed over"
        chunks += [(start, count, flags) for _, start, count, flags in plan_rows(sim)[1:]]
        sim.apply()
    assert chunks[:3] == [(0, 8, 0), (8, 8, 0), (16, 9, SAMPLE)]
    sim.run()
    assert len(sim.heard[FRONTEND, long].tokens) == 2


# Ends


def test_stop_token_ids_and_ignore_eos() -> None:
    sim = Simulation(next_token=scripted(EOS, 11, 12))
    by_id = sim.submit([5], ignore_eos=True, stop_token_ids=[12], max_tokens=9)
    by_eos = sim.submit([6], max_tokens=9)
    never = sim.submit([7], ignore_eos=True, max_tokens=5)
    sim.run()
    assert sim.heard[FRONTEND, by_id].tokens == [EOS, 11, 12]
    assert sim.heard[FRONTEND, by_eos].tokens == [EOS]
    assert sim.heard[FRONTEND, never].tokens == [EOS, 11, 12, 9, 9]


def test_many_stop_ids() -> None:
    sim = Simulation(next_token=scripted(9, 9, 60))
    handle = sim.submit([5], stop_token_ids=list(range(30, 64)), max_tokens=9)
    sim.run()
    assert sim.heard[FRONTEND, handle].tokens == [9, 9, 60]


def test_min_tokens() -> None:
    sim = Simulation(next_token=lambda tokens, setup: EOS)
    handle = sim.submit([5], min_tokens=4, max_tokens=9)
    sim.run()
    assert len(sim.heard[FRONTEND, handle].tokens) == 4


def test_abort_waiting_and_running() -> None:
    sim = Simulation(make_config(rows=1, tokens=16))
    running, waiting, other = sim.submit([5, 6]), sim.submit([7]), sim.submit([8])
    sim.plan()
    sim.plan()
    sim.abort(waiting)
    sim.abort(running)
    sim.abort(12345)
    assert sim.heard[FRONTEND, waiting].reason is sim.heard[FRONTEND, running].reason is FinishReason.ABORT
    sim.run()
    sim.check_outputs()
    assert sim.heard[FRONTEND, other].reason is not FinishReason.ABORT
    assert sim.scheduler.kv.pool.num_used == 0


def test_frontend_gone_ends_its_requests_silently() -> None:
    sim = Simulation()
    mine = sim.submit([5, 6], max_tokens=6)
    for _ in range(3):
        sim.submit([7, 8], frontend="frontend.1.9", max_tokens=30)
    sim.turn()
    sim.gone.add("frontend.1.9")
    sim.scheduler.frontend_gone("frontend.1.9")
    sim.collect()
    sim.run()
    assert sim.heard[FRONTEND, mine].finished
    assert sim.scheduler.num_requests == 0


def test_not_finite_logits_fail_that_request_alone() -> None:
    sim = Simulation()
    prompt = list(range(3, 23))
    bad = sim.submit(prompt, max_tokens=9, seed=13)
    good = sim.submit([40, 41, 42], max_tokens=9)
    sim.poison = lambda tokens, setup: setup.seed == 13 and len(tokens) > 22
    sim.run()
    finished = sim.heard[FRONTEND, bad].finished[0]
    assert finished.reason is FinishReason.ERROR and finished.error == NOT_FINITE
    assert finished.num_output == 3
    hits = sim.scheduler.counters.prefix_hits
    again = sim.submit(prompt, max_tokens=9)
    sim.run()
    assert sim.scheduler.counters.prefix_hits == hits, "blocks of a failed request were read"
    del sim.heard[FRONTEND, bad]
    sim.check_outputs()
    assert sim.heard[FRONTEND, good].finished and sim.heard[FRONTEND, again].finished


def test_a_token_outside_the_vocabulary_is_a_failure() -> None:
    sim = Simulation(next_token=lambda tokens, setup: VOCAB + 7 if setup.seed == 13 else 9)
    bad, good = sim.submit([5, 6], seed=13), sim.submit([7, 8])
    sim.run()
    assert sim.heard[FRONTEND, bad].reason is FinishReason.ERROR and sim.heard[FRONTEND, bad].tokens == []
    assert sim.heard[FRONTEND, good].reason is FinishReason.LENGTH


def test_times_and_counts_of_a_finished_request() -> None:
    sim = Simulation()
    sim.submit(list(range(3, 23)), max_tokens=1)
    sim.run()
    handle = sim.submit(list(range(3, 23)), max_tokens=4, ignore_eos=True)
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    finished = heard.finished[0]
    assert (finished.num_prompt, finished.num_output) == (20, 4)
    assert heard.started is not None and heard.started.num_cached == 16 and heard.started.queued_ns > 0


# Refusals


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, VOCAB]}, "prompt"),
        ({"prompt": [5, -1]}, "prompt"),
        ({"prompt": b"abc"}, "prompt"),
        ({"prompt": [5] * 64}, "prompt"),
        ({"prompt": [5] * 63, "num_blocks": 8}, "prompt"),
        ({"prompt": [5], "stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"prompt": [5], "bad_words": [[VOCAB]]}, "bad_words"),
        ({"prompt": [5], "bad_words": [[]]}, "bad_words"),
        ({"prompt": [5], "bad_words": [[3] * 400_000]}, "bad_words"),
        ({"prompt": [5], "handle": -1}, "handle"),
        ({"prompt": [5], "handle": 2**32}, "handle"),
        ({"prompt": [5], "emitted": ids(5, VOCAB)}, "emitted"),
        ({"prompt": [5], "max_tokens": 2, "emitted": ids(5, 6)}, "emitted"),
        ({"prompt": [5], "temperature": float("nan")}, "temperature"),
        ({"prompt": [5], "priority": 2**70}, "priority"),
    ],
)
def test_impossible_requests_are_refused(options: dict, param: str) -> None:  # type: ignore[type-arg]
    options = dict(options)
    sim = Simulation(num_blocks=options.pop("num_blocks", 64))
    _, refused = sim.try_submit(options.pop("prompt"), **options)
    assert refused is not None and refused.code is RefuseCode.INVALID and refused.param == param
    assert sim.scheduler.num_requests == 0
    sim.submit([5, 6])
    sim.run()
    sim.check_outputs()


def test_the_longest_prompt_gives_one_token() -> None:
    sim = Simulation()
    handle = sim.submit([5] * 63, max_tokens=None)
    sim.run()
    assert len(sim.heard[FRONTEND, handle].tokens) == 1


def test_names_in_use_are_refused() -> None:
    sim = Simulation()
    sim.submit([5], handle=1, request_id="a")
    assert sim.try_submit([5], handle=1, request_id="b")[1].param == "handle"  # type: ignore[union-attr]
    assert sim.try_submit([5], handle=2, request_id="a")[1].param == "request_id"  # type: ignore[union-attr]
    assert sim.try_submit([5], handle=1, request_id="a", frontend="frontend.1.8")[1] is None
    sim.run()
    assert sim.try_submit([5], handle=1, request_id="a")[1] is None


def test_queue_full_and_draining() -> None:
    sim = Simulation(make_config(rows=1, tokens=16, queue=2))
    sim.submit([5])
    sim.submit([5])
    _, refused = sim.try_submit([5])
    assert refused is not None and refused.code is RefuseCode.QUEUE_FULL and refused.retry_after_s >= 1
    sim.scheduler.drain()
    _, refused = sim.try_submit([5])
    assert refused is not None and refused.code is RefuseCode.DRAINING
    sim.run()
    sim.check_outputs()


# What a worker is told


def test_row_setup_carries_the_parameters() -> None:
    sim = Simulation()
    sim.submit(
        [5, 6, 7], seed=-5, temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, min_tokens=2, stop_token_ids=[9], logprobs=3,
        logit_bias={4: 1.5}, allowed_token_ids=[4, 5], max_tokens=4,
    )  # fmt: skip
    sim.plan()
    assert setups(sim) == [
        RowSetup(
            row=0, num_prompt=3, seed=-5, temperature=0.5, top_k=0, top_p=0.9, min_p=0.1, min_position=5, stop_ids=[EOS, 9], logprobs=3,
            logit_bias={4: 1.5}, allowed=ids(4, 5),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}, {"bad_words": [[3]]}, {"prompt_logprobs": 0}],
)
def test_history_is_given_where_it_is_needed(options: dict) -> None:  # type: ignore[type-arg]
    sim = Simulation()
    sim.submit([5, 6, 7], emitted=ids(9), **options)
    sim.plan()
    assert setups(sim)[0].history == ids(5, 6, 7, 9) and setups(sim)[0].num_prompt == 3


def test_a_request_goes_on_after_what_was_emitted() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=12, ignore_eos=True)
    sim.run()
    output = sim.heard[FRONTEND, handle].tokens
    again = sim.submit([5, 6, 7], max_tokens=12, ignore_eos=True, emitted=ids(*output[:7]), frontend="frontend.0.99")
    sim.run()
    assert sim.heard["frontend.0.99", again].tokens == output


# Log-probabilities


def test_logprobs_for_those_who_asked() -> None:
    sim = Simulation()
    wants = {sim.submit([5, at], max_tokens=5, ignore_eos=True, logprobs=at, seed=at): at for at in (None, 0, 3, None, 5) if at is not None}
    plain = sim.submit([9, 9], max_tokens=5, ignore_eos=True)
    sim.run()
    assert sim.heard[FRONTEND, plain].logprobs == {}
    for handle, count in wants.items():
        heard = sim.heard[FRONTEND, handle]
        assert len(heard.logprobs) == 5
        for at, token in enumerate(heard.tokens):
            value, top = heard.logprobs[at]
            assert value == pytest.approx(-(2 + at + token / 1024), abs=1e-3)
            assert top == [token + rank for rank in range(count)]


@pytest.mark.parametrize("width", [0, 2])
@pytest.mark.parametrize("budget", [8, 64])
def test_prompt_logprobs_cover_the_prompt_once(width: int, budget: int) -> None:
    sim = Simulation(make_config(tokens=budget))
    prompt = list(range(3, 33))
    sim.submit(prompt, max_tokens=2)
    sim.run()
    decoding = sim.submit([40], max_tokens=30, ignore_eos=True)
    sim.turn()
    handle = sim.submit(prompt, max_tokens=2, prompt_logprobs=width)
    sim.run()
    parts = sim.heard[FRONTEND, handle].prompt_logprobs
    values = np.concatenate([np.frombuffer(part.logprob, np.float32) for part in parts])
    assert [part.start for part in parts] == list(np.cumsum([1, *(len(part.logprob) // 4 for part in parts)])[:-1])
    assert values == pytest.approx([-(at + prompt[at] / 1024) for at in range(1, 30)], abs=1e-3)
    assert all(part.width == width and len(part.top_ids) == len(part.logprob) * width for part in parts)
    assert sim.heard[FRONTEND, decoding].prompt_logprobs == []
    sim.check_outputs()
