"""Random lives of a scheduler, checked after every call, against what each request gives when it runs alone.

The toy worker reads contexts back through block tables, so sharing, growth, preemption, overlap and replay are all in the outputs.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ipc.messages import BEHIND_CLIENTS, FinishReason
from scheduler_proc.lifecycle import NOT_FINITE
from tests.scheduler_proc.simulation import FRONTEND, Heard, Simulation, ids, make_config, toy_grammar

# Few tokens, so that prefixes are shared and stop tokens are drawn often.
VOCAB = 7
STEMS = [[5] * 40, [3, 4, 5, 6] * 10, [6, 5, 3] * 13]
FRONTENDS = ["frontend.0.1", "frontend.1.2", "frontend.2.3"]
POISON_SEED = 5

prompts = st.builds(
    lambda stem, length, tail: STEMS[stem][:length] + tail,
    st.integers(0, 2),
    st.integers(0, 38),
    st.lists(st.integers(3, 6), min_size=1, max_size=4),
)
options = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 24),
        "seed": st.integers(0, 5),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(st.integers(0, 6), max_size=1),
        "priority": st.sampled_from([-1, 0, 1, BEHIND_CLIENTS]),
        "cache_salt": st.sampled_from(["", "", "", "salt"]),
        "logprobs": st.sampled_from([None, None, 0, 2]),
        "prompt_logprobs": st.sampled_from([None, None, None, 1]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "grammar": st.one_of(
            st.none(),
            st.none(),
            st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), max_size=16).map(lambda sets: toy_grammar(*sets)),
        ),
    }
)
embeddings = st.fixed_dictionaries(
    {
        "embed": st.just(True),
        "priority": st.sampled_from([-1, 0, 1, BEHIND_CLIENTS]),
        "cache_salt": st.sampled_from(["", "salt"]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """`broken`: requests whose logits are not finite at some length, decided by seed and a switch."""

    @initialize(
        num_blocks=st.integers(10, 40),
        rows=st.integers(1, 6),
        tokens=st.integers(6, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        overlap=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        poisoned=st.booleans(),
        grammar_rows=st.integers(1, 6),
        late_masks=st.booleans(),
        pooling=st.sampled_from(["last", "mean"]),
        slow_masks=st.sampled_from([0.0, 0.3]),
    )
    def build(
        self,
        num_blocks: int,
        rows: int,
        tokens: int,
        block_size: int,
        overlap: bool,
        policy: Any,
        poisoned: bool,
        grammar_rows: int,
        late_masks: bool,
        pooling: str,
        slow_masks: float,
    ) -> None:
        config = make_config(rows=rows, tokens=tokens, block_size=block_size, overlap=overlap, policy=policy, grammar_rows=grammar_rows)
        self.sim = Simulation(config, num_blocks=max(num_blocks, 56 // block_size), vocab_size=VOCAB, pooling=pooling)
        self.sim.desk.rng = random.Random(num_blocks) if late_masks else None
        self.sim.desk.slow = slow_masks
        self.poisoned = poisoned
        if poisoned:
            self.sim.poison = lambda tokens, setup: setup.seed == POISON_SEED and len(tokens) % 11 == 3
        self.sources: list[int] = []

    @rule(prompt=prompts, options=st.one_of(options, options, embeddings), frontend=st.sampled_from(FRONTENDS), copies=st.integers(1, 3))
    def add(self, prompt: list[int], options: dict[str, Any], frontend: str, copies: int) -> None:
        self.sim.gone.discard(frontend)
        for _ in range(copies):
            self.sources.append(self.sim.try_submit(prompt, frontend, **options)[0])

    @rule(data=st.data(), frontend=st.sampled_from(FRONTENDS))
    def resubmit(self, data: st.DataObject, frontend: str) -> None:
        """Another frontend life brings a request with some of its output known."""
        heard = [heard for heard in self.sim.heard.values() if len(heard.tokens) > 1]
        if not heard:
            return
        source = heard[data.draw(st.integers(0, len(heard) - 1))]
        known = data.draw(st.integers(0, len(source.tokens) - 1))
        self.sim.gone.discard(frontend)
        submit = source.submit
        self.sim.try_submit(
            submit.prompt,
            frontend,
            emitted=ids(*source.tokens[:known]),
            seed=submit.seed,
            max_tokens=submit.params.max_tokens,
            ignore_eos=submit.params.ignore_eos,
            stop_token_ids=submit.params.stop_token_ids,
            grammar=submit.grammar,
        )

    @rule()
    def serve(self) -> None:
        self.sim.serve()

    @rule()
    def plan(self) -> None:
        self.sim.plan()

    @rule()
    def apply(self) -> None:
        self.sim.apply()

    @rule(count=st.integers(1, 8))
    def turns(self, count: int) -> None:
        for _ in range(count):
            self.sim.turn()

    @precondition(lambda self: self.sim.heard)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        frontend, handle = data.draw(st.sampled_from(list(self.sim.heard)))
        if frontend not in self.sim.gone:
            self.sim.abort(handle, frontend)

    @rule(frontend=st.sampled_from(FRONTENDS))
    def frontend_gone(self, frontend: str) -> None:
        self.sim.gone.add(frontend)
        self.sim.scheduler.frontend_gone(frontend)
        self.sim.collect()
        for key in [key for key, heard in self.sim.heard.items() if key[0] == frontend and not heard.finished]:
            del self.sim.heard[key]

    @rule()
    def lose_workers(self) -> None:
        self.sim.lose_workers()

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        self.sim.run()
        pool = self.sim.scheduler.kv.pool
        assert pool.num_used == 0 and pool.num_available == pool.num_blocks
        for heard in self.sim.heard.values():
            assert heard.finished, "a request never ended"
            self.check(heard)

    def check(self, heard: Heard) -> None:
        tokens, reason = self.sim.reference(heard)
        finished = heard.finished[0]
        assert heard.vector == (self.sim.vector(heard) if finished.reason is FinishReason.STOP else None)
        if finished.reason is FinishReason.ERROR:
            assert (self.poisoned and finished.error == NOT_FINITE) or "3 times" in finished.error
        if finished.reason in (FinishReason.STOP, FinishReason.LENGTH):
            capacity = self.sim.scheduler.kv.pool.num_blocks * self.sim.config.cache.block_size
            cut = finished.reason is FinishReason.LENGTH and finished.num_prompt + len(heard.tokens) == capacity + 1
            assert (heard.tokens, finished.reason) == (tokens, reason) or (cut and heard.tokens == tokens[: len(heard.tokens)])
        else:
            assert heard.tokens == tokens[: len(heard.tokens)]
        wanted = heard.submit.params.logprobs
        if wanted is None:
            assert not heard.logprobs
        else:
            first = len(heard.submit.emitted) // 4
            assert sorted(heard.logprobs) == list(range(first, len(heard.tokens)))
            assert all(top == [heard.tokens[at] + rank for rank in range(wanted)] for at, (_, top) in heard.logprobs.items())
        if heard.submit.params.prompt_logprobs is not None and len(heard.tokens) > len(heard.submit.emitted) // 4:
            count = sum(len(part.logprob) // 4 for part in heard.prompt_logprobs)
            assert count == finished.num_prompt - 1, "prompt log-probabilities are missing or repeated"


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)


def life(seed: int) -> Simulation:
    """A longer, busier life than the machine's: many requests over a small pool."""
    rng = random.Random(seed)
    config = make_config(
        rows=rng.choice([3, 8, 16]),
        tokens=rng.choice([16, 33, 64]),
        block_size=rng.choice([2, 4, 8]),
        overlap=rng.random() < 0.7,
        policy=rng.choice(["fcfs", "priority"]),
        caching=rng.random() < 0.8,
        grammar_rows=rng.choice([1, 3, 16]),
    )
    sim = Simulation(config, num_blocks=rng.randint(64 // config.cache.block_size, 160 // config.cache.block_size), vocab_size=16)
    sim.desk.rng = rng if rng.random() < 0.5 else None
    sim.desk.slow = rng.choice([0.0, 0.2])
    losses = 0
    for _ in range(60):
        stem = rng.choice(STEMS)[: rng.randint(1, 36)]
        sim.submit(
            stem + [rng.randint(3, 15) for _ in range(rng.randint(0, 6))],
            frontend=rng.choice(FRONTENDS),
            max_tokens=rng.randint(1, 20),
            seed=rng.randint(0, 3),
            priority=rng.choice([0, 1, 2, BEHIND_CLIENTS]),
            ignore_eos=rng.random() < 0.3,
            logprobs=rng.choice([None, 1]),
            grammar=toy_grammar(*([rng.randint(0, 15) for _ in range(3)] for _ in range(rng.randint(1, 24))))
            if rng.random() < 0.3
            else None,
        )
        for _ in range(rng.randint(0, 2)):
            sim.turn()
        # A third death could be taken for a request's fault, which then ends with an error.
        if rng.random() < 0.02 and losses < 2:
            losses += 1
            sim.lose_workers()
    sim.run()
    return sim


@pytest.mark.parametrize("seed", range(25))
def test_busy_lives(seed: int) -> None:
    life(seed).check_outputs()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 50))
def test_many_busy_lives(first: int) -> None:
    for seed in range(1000 + first, 1050 + first):
        life(seed).check_outputs()


def test_the_lives_are_hard_enough() -> None:
    """Preemption, sharing and eviction do happen in them, or they would prove little."""
    counters = [(sim.scheduler.counters.preemptions, sim.scheduler.counters.prefix_hits) for sim in map(life, range(6))]
    assert sum(preemptions for preemptions, _ in counters) > 20
    assert sum(hits for _, hits in counters) > 200


@pytest.mark.parametrize("fault", ["table", "shared", "start", "lost_token"])
def test_the_reference_sees_faults(fault: str) -> None:
    """A check of the check: each kind of damage the toy worker is there for changes outputs, or makes it complain."""
    sim = Simulation()
    for at in range(3):
        sim.submit([5, 6, 7, 8, 9, at], max_tokens=12, ignore_eos=True, seed=at)
    sim.plan()
    sim.apply()
    sim.plan()
    plan = sim.last_plan
    if fault == "table":
        sim.toy.block_table[0, 0] = sim.toy.block_table[1, 1]
    elif fault == "shared":
        sim.toy.block_table[0] = sim.toy.block_table[2]
    elif fault == "start":
        plan.start[0] += 1
    else:
        sim.toy.last_token[0] += 1

    def go_on() -> None:
        sim.run()
        sim.check_outputs()

    with pytest.raises(AssertionError):
        go_on()


def test_hashed_tokens_depend_on_everything() -> None:
    sim = Simulation()
    handle = sim.submit([5, 6, 7], max_tokens=1, seed=3)
    sim.run()
    heard = sim.heard[FRONTEND, handle]
    differing = 0
    for change in range(3):
        prompt = np.array([5, 6, 7])
        prompt[change] += 1
        other = Simulation()
        again = other.submit(prompt.tolist(), max_tokens=1, seed=3)
        other.run()
        differing += other.heard[FRONTEND, again].tokens != heard.tokens
    assert differing == 3
