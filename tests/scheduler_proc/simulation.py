"""A scheduler with a toy worker in one thread, under virtual time: what tests of the core drive."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from ipc.arena import NUM_SLOTS, Dimensions, PlanColumns, PlanHeader, ResultColumns, ResultHeader, RowFlag, RowSetup
from ipc.config import CacheConfig, Config, ModelConfig, SchedulerConfig, StructuredOutputsConfig
from ipc.grammar import Grammar, GrammarKind
from ipc.messages import Finished, FinishReason, PromptLogprobs, Refused, Started, Submit, Tokens
from ipc.sampling_params import SamplingParams
from scheduler_proc import row_setup
from scheduler_proc.constraint import Answer, Order, Outcome
from scheduler_proc.frontends import Frontend
from scheduler_proc.request import Request
from scheduler_proc.scheduler import Scheduler
from tests.fakes import small_model
from tests.paged_toy import NextToken, PagedToy, hashed, next_allowed, toy_vector

VOCAB = 64
EOS = 2
FRONTEND = "frontend.0.7"
SAMPLE, DEVICE = int(RowFlag.SAMPLE), int(RowFlag.SAMPLE | RowFlag.DEVICE_TOKEN)
MILLISECOND = 1_000_000


def make_config(
    rows: int = 8,
    tokens: int = 64,
    block_size: int = 4,
    caching: bool = True,
    overlap: bool = True,
    target_step_ms: float = 0,
    policy: Any = "fcfs",
    queue: int = 1000,
    grammar_rows: int = 128,
) -> Config:
    return Config(
        model=ModelConfig(max_logprobs=5),
        cache=CacheConfig(block_size=block_size, enable_prefix_caching=caching),
        scheduler=SchedulerConfig(
            max_num_seqs=rows,
            max_num_batched_tokens=tokens,
            overlap=overlap,
            scheduling_policy=policy,
            max_queued_requests=queue,
            target_step_ms=target_step_ms,
        ),
        structured_outputs=StructuredOutputsConfig(max_grammar_rows=grammar_rows),
    )


def ids(*tokens: int) -> bytes:
    return np.array(tokens, np.int32).tobytes()


def toy_grammar(*sets: list[int]) -> Grammar:
    """Output token i is one of sets[i]; after the last set nothing may follow. No set at all: a grammar that cannot be compiled."""
    return Grammar(GrammarKind.CHOICE, json.dumps(sets))


class ToyDesk:
    """Does the grammar desk's work for toy grammars, on time or, with `rng`, some turns later and in another order."""

    def __init__(self, mask_words: int) -> None:
        self.mask_words = mask_words
        self.rng: random.Random | None = None
        self._slowness = random.Random(1)
        self.orders: list[Order] = []
        self.fails_at = -1  # the output length at which every request fails
        self.slow = 0.0  # how likely a mask is called slow

    def answers(self, orders: list[Order]) -> list[Answer]:
        """Of the orders given now and before, those that are due."""
        self.orders += orders
        due = [order for order in self.orders if self.rng is None or self.rng.random() < 0.4]
        self.orders = [order for order in self.orders if order not in due]
        if self.rng is not None:
            self.rng.shuffle(due)
        return [self._answer(order) for order in due]

    def _answer(self, order: Order) -> Answer:
        constraint = order.constraint
        sets = json.loads(constraint.grammar.text)
        if not sets:
            return Answer(constraint, Outcome.INVALID, "no sets")
        assert order.first == (constraint.state is None), "opened twice, or never"
        constraint.state = (constraint.state or []) + order.tokens
        assert all(token in allowed for token, allowed in zip(constraint.state, sets, strict=False)), "a token left the grammar"
        if len(constraint.state) == self.fails_at:
            return Answer(constraint, Outcome.FAILED, "told to fail")
        if len(constraint.state) >= len(sets):
            return Answer(constraint, Outcome.COMPLETE)
        bits = np.zeros(32 * self.mask_words, np.uint8)
        bits[sets[len(constraint.state)]] = 1
        constraint.slow = self._slowness.random() < self.slow
        constraint.mask = np.packbits(bits, bitorder="little").view(np.int32)
        return Answer(constraint, Outcome.READY)


@dataclass
class Heard:
    """What a frontend was told of one request."""

    submit: Submit
    started: Started | None = None
    tokens: list[int] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    logprobs: dict[int, tuple[float, list[int]]] = field(default_factory=dict)  # by output index: logprob, alternatives
    vector: list[float] | None = None

    @property
    def reason(self) -> FinishReason | None:
        return self.finished[0].reason if self.finished else None


class Simulation:
    """Drives Scheduler and PagedToy; `validate` runs after every call.

    heard: by (frontend identity, handle). plans: copies of the last plans' columns, newest last.
    """

    def __init__(self, config: Config | None = None, num_blocks: int = 64, next_token: NextToken | None = None, **model: Any) -> None:
        self.config = config or make_config()
        self.model = small_model(**{"vocab_size": VOCAB, "max_model_len": 64, "eos_token_ids": [EOS], "hidden_size": 8, **model})
        self.next_token = next_token or hashed(self.model.vocab_size)
        self.dimensions = Dimensions.of(self.config, self.model)
        self.scheduler = Scheduler(self.config, self.model, num_blocks, b"s" * 16)
        self.desk = ToyDesk(self.dimensions.mask_words)
        self.refused: dict[tuple[str, int], Refused] = {}  # after they had been taken
        self.poison: NextToken = lambda tokens, setup: False
        self.toy = self.new_toy(num_blocks)
        self.slots = [(PlanColumns(self.dimensions), ResultColumns(self.dimensions)) for _ in range(NUM_SLOTS)]
        self.in_flight: deque[int] = deque()
        self.masked: set[int] = set()  # of these, the steps whose late masks are complete
        self.heard: dict[tuple[str, int], Heard] = {}
        self.gone: set[str] = set()
        self.step = 0
        self.now = MILLISECOND
        self.step_ms: Callable[[int], float] = lambda tokens: 1.0  # what the workers say a step of so many tokens took
        self.handles = 0

    def new_toy(self, num_blocks: int) -> PagedToy:
        return PagedToy(self.dimensions, self.config.cache.block_size, num_blocks, self.next_token, lambda *args: self.poison(*args))

    def submit(self, prompt: bytes | list[int], frontend: str = FRONTEND, **options: Any) -> int:
        """Add a request that must be taken; its handle."""
        handle, refused = self.try_submit(prompt, frontend, **options)
        assert refused is None, refused
        return handle

    def try_submit(self, prompt: bytes | list[int], frontend: str = FRONTEND, **options: Any) -> tuple[int, Refused | None]:
        fields = {name: options.pop(name) for name in list(options) if name in Submit.__struct_fields__}
        params = SamplingParams(**{"max_tokens": 8, **options})
        handle = fields.pop("handle", self.handles)
        self.handles += 1
        self.now += 1
        data = prompt if isinstance(prompt, bytes) else ids(*prompt)
        values: dict[str, Any] = {"request_id": f"r{handle}", "seed": 1, "arrival_ns": self.now, **fields}
        submit = Submit(handle=handle, prompt=data, params=params, **values)
        refused = self.scheduler.add(submit, frontend, self.now)
        if refused is None:
            heard = self.heard[frontend, handle] = Heard(submit)
            heard.tokens = np.frombuffer(submit.emitted, np.int32).tolist()
        self.scheduler.validate()
        return handle, refused

    def abort(self, handle: int, frontend: str = FRONTEND) -> None:
        self.scheduler.abort(frontend, handle)
        self.collect()

    def plan(self) -> int:
        """Plan one step if one may be out; its number of tokens."""
        if not self.scheduler.may_plan:
            return 0
        self.now += MILLISECOND
        slot = self.step % NUM_SLOTS
        planned = self.scheduler.plan(self.now, self.slots[slot][0], self.step)
        self.collect()
        if planned:
            self.in_flight.append(self.step)
            self.step += 1
        return planned

    @property
    def last_plan(self) -> PlanColumns:
        return self.slots[(self.step - 1) % NUM_SLOTS][0]

    def apply(self) -> bool:
        """Let the worker compute the oldest step in flight and take its result; False if there is none, or its masks are not there."""
        if not self.in_flight:
            return False
        plan, result = self.slots[self.in_flight[0] % NUM_SLOTS]
        self.masked.update(self.scheduler.masked())
        if plan.header[PlanHeader.MASKS_FOLLOW] and self.in_flight[0] not in self.masked:
            return False
        self.masked.discard(self.in_flight.popleft())
        self.toy.run(plan, result)
        result.header[ResultHeader.FORWARD_NS] = int(self.step_ms(int(plan.header[PlanHeader.NUM_TOKENS])) * MILLISECOND)
        self.now += MILLISECOND
        for emission in self.scheduler.apply(result, self.now):
            self.hear(*emission)
        self.scheduler.validate()
        return True

    def lose_workers(self) -> None:
        self.in_flight.clear()
        self.masked.clear()
        self.scheduler.workers_lost()
        self.collect()
        self.toy = self.new_toy(self.scheduler.kv.pool.num_blocks)

    def collect(self) -> None:
        for emission in self.scheduler.emissions(self.now):
            self.hear(*emission)
        self.scheduler.validate()

    def hear(self, frontend: str, message: Tokens) -> None:
        """Do as a frontend does, and check what it may rely on."""
        assert frontend not in self.gone, "a message to a dead frontend"
        handles = np.frombuffer(message.handles, np.uint32).tolist()
        index = np.frombuffer(message.index, np.uint32).tolist()
        tokens = np.frombuffer(message.tokens, np.int32).tolist()
        assert len(handles) == len(index) == len(tokens)
        assert handles or message.finished or message.prompt_logprobs, "an empty message"
        for started in message.started:
            told = self.heard.get((frontend, started.handle))
            if told is not None:
                assert told.started is None, "a request started twice"
                told.started = started
        for handle, at, token in zip(handles, index, tokens):
            heard = self.heard[frontend, handle]
            assert heard.started is not None, "a token before the start"
            assert not heard.finished, "a token after the end"
            assert at == len(heard.tokens), f"token {at} came after {len(heard.tokens)}"
            heard.tokens.append(token)
        self._hear_logprobs(frontend, message, handles, index)
        for prompt in message.prompt_logprobs:
            self.heard[frontend, prompt.handle].prompt_logprobs.append(prompt)
        for embedding in message.embeddings:
            assert self.heard[frontend, embedding.handle].vector is None, "two vectors of one request"
            self.heard[frontend, embedding.handle].vector = np.frombuffer(embedding.vector, np.float32).tolist()
        for finished in message.finished:
            heard = self.heard[frontend, finished.handle]
            heard.finished.append(finished)
            assert len(heard.finished) == 1, "a request ended twice"
            assert finished.num_output == len(heard.tokens)
            assert finished.num_prompt == len(heard.submit.prompt) // 4

    def _hear_logprobs(self, frontend: str, message: Tokens, handles: list[int], index: list[int]) -> None:
        columns = message.logprobs
        if columns is None:
            return
        at = np.frombuffer(columns.at, np.uint32).tolist()
        logprob = np.frombuffer(columns.logprob, np.float32).tolist()
        top = np.frombuffer(columns.top_ids, np.int32).reshape(len(at), columns.width).tolist()
        for place, value, alternatives in zip(at, logprob, top):
            self.heard[frontend, handles[place]].logprobs[index[place]] = (value, [token for token in alternatives if token >= 0])

    def serve(self) -> None:
        """Let the grammar desk work."""
        for frontend, refused in self.scheduler.answer(self.desk.answers(self.scheduler.orders())):
            self.refused[frontend, refused.handle] = refused
            del self.heard[frontend, refused.handle]
        self.collect()

    def turn(self) -> None:
        """What the loop does: plan as much as may be out, then take one result."""
        self.serve()
        while self.plan():
            pass
        self.apply()

    def run(self, limit: int = 2000) -> None:
        """Turn until nothing is left to do. Raises AssertionError if that takes more than `limit` turns."""
        for _ in range(limit):
            if not self.scheduler.num_requests and not self.in_flight:
                return
            self.turn()
        raise AssertionError(f"{self.scheduler.num_requests} requests do not end")

    def reference(self, heard: Heard) -> tuple[list[int], FinishReason]:
        """What the request gives if it is alone, without a cache and never interrupted."""
        submit = heard.submit
        if submit.embed:
            return [], FinishReason.STOP
        eos = list(self.model.eos_token_ids)
        frontend = Frontend(FRONTEND, 0)
        prompt = np.frombuffer(submit.prompt, np.int32).tolist()
        room = self.model.max_model_len - len(prompt)
        most = min(submit.params.max_tokens or room, room)
        request = Request(msgspec.structs.replace(submit, emitted=b""), frontend, (0, 0, 0), len(prompt) + most, eos)
        request.row = 0
        setup = msgspec.msgpack.decode(row_setup.encode(request), type=RowSetup)
        sets = json.loads(submit.grammar.text) if submit.grammar is not None else []
        output: list[int] = []
        while len(output) < most:
            token = self.next_token(np.array(prompt + output, np.int32), setup)
            if sets:
                mask = np.zeros(self.model.vocab_size, bool)
                mask[sets[len(output)]] = True
                token = next_allowed(token, mask)
            output.append(token)
            if token in request.stop_set and len(output) >= submit.params.min_tokens:
                return output, FinishReason.STOP
            if len(output) == len(sets) and len(output) < most:
                return output, FinishReason.STOP
        return output, FinishReason.LENGTH

    def check_outputs(self) -> None:
        """Every request ended once and as it would have alone; aborted ones gave a prefix of that."""
        for heard in self.heard.values():
            tokens, reason = self.reference(heard)
            if heard.reason is FinishReason.ABORT or not heard.finished:
                assert heard.tokens == tokens[: len(heard.tokens)]
            else:
                assert (heard.tokens, heard.reason) == (tokens, reason), heard.submit
                assert heard.vector == self.vector(heard)

    def vector(self, heard: Heard) -> list[float] | None:
        """What an embedding request that ended well was given; None for others."""
        prompt = np.frombuffer(heard.submit.prompt, np.int32)
        return toy_vector(prompt, self.dimensions.hidden).tolist() if heard.submit.embed else None


def scripted(*output: int) -> NextToken:
    """Every request answers with these tokens, then with 9s."""
    return lambda tokens, setup: output[at] if (at := len(tokens) - setup.num_prompt) < len(output) else 9


def plan_rows(sim: Simulation) -> list[tuple[int, int, int, int]]:
    """(row, start, num_new, flags) of the last plan."""
    plan = sim.last_plan
    count = int(plan.header[PlanHeader.NUM_ROWS])
    return list(zip(*(column[:count].tolist() for column in (plan.row, plan.start, plan.num_new, plan.flags))))


def setups(sim: Simulation) -> list[RowSetup]:
    """Of the last plan."""
    plan = sim.last_plan
    size = int(plan.header[PlanHeader.SETUP_BYTES])
    return msgspec.msgpack.decode(plan.setup[:size].tobytes(), type=list[RowSetup]) if size else []
