"""Stand-ins for processes: a worker without a model, and an engine of real scheduler and fake worker for tests of frontends.

`PagedToy` is the worker's arithmetic: it keeps token ids in KV slots where a model keeps keys and values, reads each row's whole
context back through the block table and lets a function choose the next token. A wrong block table, a block shared wrongly, a
wrong position or a lost token therefore changes its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import zmq

from gpu_workers.sampling.thinking import Thoughts
from ipc.arena import Arena, Dimensions, PlanColumns, PlanHeader, ResultColumns, ResultFlag, ResultHeader, RowFlag, RowSetup
from ipc.channels import Channel
from ipc.config import ChildSpec, Config, ModelInfo
from ipc.messages import (
    ChildToSupervisor,
    Drain,
    KVReady,
    KVSize,
    Masks,
    PeerGone,
    SchedulerToWorker,
    StepPlan,
    StepResult,
    Stop,
    WorkerReady,
)

ROOT = Path(__file__).resolve().parent.parent
EMPTY = -1
NEVER_WRITTEN = -2

# (all tokens so far, setup) -> next token
NextToken = Callable[[np.ndarray, RowSetup], int]


def echo(tokens: np.ndarray, setup: RowSetup) -> int:
    """The prompt's tokens in order, then the first stop id, if the request has one (else the prompt again)."""
    num_output = len(tokens) - setup.num_prompt
    if num_output >= setup.num_prompt and setup.stop_ids and len(tokens) >= setup.min_position:
        return setup.stop_ids[0]
    return int(tokens[num_output % setup.num_prompt])


def hashed(vocab_size: int) -> NextToken:
    """A token that depends on every token before it and on the seed, and on nothing else."""

    def choose(tokens: np.ndarray, setup: RowSetup) -> int:
        weights = np.arange(1, len(tokens) + 1, dtype=np.uint64)
        mixed = int((((tokens.astype(np.uint64) + 1) * weights * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(17)).sum(dtype=np.uint64))
        mixed = (mixed ^ (setup.seed * 0xD1B54A32D192ED03)) * 0xBF58476D1CE4E5B9 % 2**64
        token = (mixed >> 29) % vocab_size
        if len(tokens) < setup.min_position:
            while token in setup.stop_ids:
                token = (token + 1) % vocab_size
        return token

    return choose


class PagedToy:
    """Executes plans as a worker does, over a KV store of token ids. Raises AssertionError on a plan no worker could execute.

    poison(tokens, setup): whether this row's logits are not finite.
    """

    def __init__(
        self, dimensions: Dimensions, block_size: int, num_blocks: int, next_token: NextToken, poison: NextToken | None = None
    ) -> None:
        self.block_size = block_size
        self.next_token = next_token
        self.poison = poison
        self.slots = np.full(num_blocks * block_size, NEVER_WRITTEN, np.int32)
        self.block_table = np.full((dimensions.rows, dimensions.blocks_per_row), EMPTY, np.int32)
        self.last_token = np.full(dimensions.rows, EMPTY, np.int32)
        self.setups: dict[int, RowSetup] = {}
        self.means: dict[int, np.ndarray] = {}
        self.tokens_computed = 0
        self._decoder = msgspec.msgpack.Decoder(list[RowSetup])

    def run(self, plan: PlanColumns, result: ResultColumns) -> None:
        """Compute one step."""
        _, num_rows, num_tokens, num_ids, num_updates, setup_bytes = plan.header[:6].tolist()
        if setup_bytes:
            for setup in self._decoder.decode(plan.setup[:setup_bytes].tobytes()):
                self.setups[setup.row] = setup
                self.last_token[setup.row] = EMPTY
                self.block_table[setup.row] = EMPTY
        self.block_table[plan.block_row[:num_updates], plan.block_index[:num_updates]] = plan.block_id[:num_updates]
        rows = plan.row[:num_rows].tolist()
        assert len(set(rows)) == len(rows), "a row is twice in the plan"
        ids_used = tokens_used = masks_used = vectors_used = 0
        for at, row in enumerate(rows):
            count, start, flags = int(plan.num_new[at]), int(plan.start[at]), int(plan.flags[at])
            if flags & RowFlag.DEVICE_TOKEN:
                assert count == 1 and self.last_token[row] != EMPTY, "a device token that no step has sampled"
                new = self.last_token[row : row + 1]
            else:
                new = plan.token_ids[ids_used : ids_used + count]
                ids_used += count
            mask = None
            if flags & RowFlag.GRAMMAR:
                assert flags & RowFlag.SAMPLE, "a mask for a row that samples nothing"
                mask = np.unpackbits(plan.masks[masks_used].view(np.uint8), bitorder="little").astype(bool)
                masks_used += 1
            self._row(row, start, new, flags, at, tokens_used, result, mask)
            if flags & (RowFlag.EMBED | RowFlag.MEAN):
                assert not flags & RowFlag.SAMPLE, "a row that samples and gives a vector"
                vectors_used += self._embed(row, start, new, flags, at, vectors_used, result)
            tokens_used += count
        assert (ids_used, tokens_used) == (num_ids, num_tokens), "the header miscounts tokens"
        assert masks_used == plan.header[PlanHeader.NUM_MASKS], "the header miscounts masks"
        self.tokens_computed += num_tokens
        result.header[ResultHeader.NUM_ROWS] = num_rows
        result.header[ResultHeader.STEP] = plan.header[PlanHeader.STEP]

    def _row(
        self, row: int, start: int, new: np.ndarray, flags: int, at: int, place: int, result: ResultColumns, mask: np.ndarray | None
    ) -> None:
        setup = self.setups[row]
        positions = np.arange(start, start + len(new))
        blocks = self.block_table[row, positions // self.block_size]
        assert (blocks >= 0).all(), f"row {row} has no block for positions {start}..{start + len(new)}"
        self.slots[blocks * self.block_size + positions % self.block_size] = new
        context = self.context(row, start + len(new))
        assert (context >= 0).all(), f"row {row} reads slots that nobody wrote"
        result.tokens[at], result.flags[at] = EMPTY, 0
        if flags & RowFlag.PROMPT_LOGPROBS:
            self._prompt_logprobs(setup, start, len(new), place, result)
        if flags & RowFlag.SAMPLE:
            token = self.next_token(context, setup)
            if setup.thinking is not None:
                forced = Thoughts(setup.thinking, context[setup.num_prompt :].tolist()).forced
                token = token if forced is None else forced
            if mask is not None:
                token = next_allowed(token, mask)
            self.last_token[row] = token
            result.tokens[at] = token
            if self.poison is not None and self.poison(context, setup):
                result.flags[at] = ResultFlag.NAN
            if setup.logprobs >= 0:
                self._logprobs(setup, len(context), token, at, result)

    def _embed(self, row: int, start: int, new: np.ndarray, flags: int, at: int, place: int, result: ResultColumns) -> int:
        """Write the row's toy vector if it is due; how many were."""
        hidden = result.vectors.shape[1]
        if flags & RowFlag.MEAN:
            assert start == 0 or row in self.means, "a mean that goes on without a beginning"
            self.means[row] = toy_vector(new, hidden) + (self.means[row] if start else 0)
        if not flags & RowFlag.EMBED:
            return 0
        if self.poison is not None and self.poison(self.context(row, start + len(new)), self.setups[row]):
            result.flags[at] = ResultFlag.NAN
        result.vectors[place] = self.means.pop(row) if flags & RowFlag.MEAN else toy_vector(self.context(row, start + len(new)), hidden)
        return 1

    def context(self, row: int, length: int) -> np.ndarray:
        """int32[length] tokens as the row's block table finds them."""
        positions = np.arange(length)
        return self.slots[self.block_table[row, positions // self.block_size] * self.block_size + positions % self.block_size]

    def _logprobs(self, setup: RowSetup, position: int, token: int, at: int, result: ResultColumns) -> None:
        result.logprob[at] = logprob_of(position, token)
        result.rank[at] = 1
        result.top_ids[at] = EMPTY
        count = setup.logprobs
        result.top_ids[at, :count] = token + np.arange(count)
        result.top_logprobs[at, :count] = logprob_of(position, token) - np.arange(count)
        if setup.logprob_ids:
            ids = np.frombuffer(setup.logprob_ids, np.int32)
            result.top_ids[at, :count] = ids
            result.top_logprobs[at, :count] = [logprob_of(position, int(each)) for each in ids]

    def _prompt_logprobs(self, setup: RowSetup, start: int, count: int, place: int, result: ResultColumns) -> None:
        history = np.frombuffer(setup.history, np.int32)
        for offset in range(count):
            position = start + offset + 1
            if position < setup.num_prompt:
                result.prompt_logprob[place + offset] = logprob_of(position, int(history[position]))
                result.prompt_rank[place + offset] = position
                result.prompt_top_ids[place + offset] = EMPTY
                result.prompt_top_ids[place + offset, : setup.prompt_logprobs] = history[position]


def next_allowed(token: int, mask: np.ndarray) -> int:
    """The first token from `token` on, round the vocabulary, that mask bool[...] allows."""
    allowed = np.flatnonzero(mask)
    return int(allowed[np.searchsorted(allowed, token) % len(allowed)])


def toy_vector(tokens: np.ndarray, hidden: int) -> np.ndarray:
    """What PagedToy gives for these tokens: a bag of them, and their number, which is in the first place."""
    vector = np.bincount(tokens % hidden, minlength=hidden).astype(np.float32)
    vector[0] += len(tokens)
    return vector


def logprob_of(position: int, token: int) -> float:
    """What PagedToy reports for a token at an absolute position."""
    return -(position + token / 1024)


class FakeWorker(threading.Thread):
    """A worker on a thread: speaks the protocol over the real channels and arena, and computes with PagedToy.

    next_token: see PagedToy. delay: seconds each step takes. Use as a context manager, or `start` and `close`. `crash` drops the
    connection without a word, as a killed process does.
    """

    def __init__(
        self, spec: ChildSpec, num_blocks: int = 256, next_token: NextToken = echo, delay: float = 0.0, poison: NextToken | None = None
    ) -> None:
        super().__init__(name=spec.identity, daemon=True)
        self.spec = spec
        self.num_blocks = num_blocks
        self.next_token, self.poison = next_token, poison
        self.delay = delay
        self.steps = 0
        self.toy: PagedToy | None = None
        self.error: BaseException | None = None
        self.standing = threading.Event()
        self._rung: deque[StepPlan] = deque()
        self._masked: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._arena = Arena(spec.fds["arena"], Dimensions.of(spec.config, spec.model))

    def run(self) -> None:
        context: Any = zmq.Context()
        self._channel: Channel[Any] = Channel.dealer(
            context, self.spec.address("workers"), self.spec.identity, SchedulerToWorker, self.spec.scheduler_epoch
        )
        self._channel.attach(self._loop, self._on_message)
        self._channel.send(WorkerReady(self.spec.index, self.num_blocks, 1024))
        try:
            self._loop.run_forever()
        finally:
            self._channel.close()
            context.destroy(linger=0)
            self._loop.close()

    def _on_message(self, _peer: str, message: Any) -> None:
        try:
            match message:
                case KVSize():
                    dimensions = self._arena.dimensions
                    self.toy = PagedToy(dimensions, self.spec.config.cache.block_size, message.num_blocks, self.next_token, self.poison)
                    self._channel.send(KVReady(self.spec.index))
                    self.standing.set()
                case StepPlan():
                    self._rung.append(message)
                    self._go_on()
                case Masks():
                    self._masked.add(message.step)
                    self._go_on()
        except BaseException as error:
            self.error = error
            raise

    def _go_on(self) -> None:
        while self._rung:
            first = self._rung[0]
            if self._arena.plans[first.slot].header[PlanHeader.MASKS_FOLLOW] and first.step not in self._masked:
                return
            self._masked.discard(first.step)
            self._step(self._rung.popleft())

    def _step(self, message: StepPlan) -> None:
        plan, result = self._arena.plans[message.slot], self._arena.results[message.slot]
        plan.check_step(message.step)
        if self.delay:
            time.sleep(self.delay)
        assert self.toy is not None
        self.toy.run(plan, result)
        self.steps += 1
        if self.spec.index == 0:
            self._channel.send(StepResult(message.step, message.slot))

    def close(self) -> None:
        """End the thread. Raises what it failed with, if it did."""
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self.join(10)
        if self.error is not None:
            raise self.error

    crash = close

    def __enter__(self) -> FakeWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeSupervisor(threading.Thread):
    """The supervisor's end of the mailbox: keeps what children say in `heard` as (identity, message), and can speak to them."""

    def __init__(self, address: str, epoch: int) -> None:
        super().__init__(name="fake-supervisor", daemon=True)
        self.heard: list[tuple[str, Any]] = []
        self._news = threading.Condition()
        self._address, self._epoch = address, epoch
        self._loop = asyncio.new_event_loop()
        self._bound = threading.Event()

    def run(self) -> None:
        context: Any = zmq.Context()
        self._channel: Channel[Any] = Channel.router(context, self._address, ChildToSupervisor, self._epoch)
        self._channel.attach(self._loop, self._on_message)
        self._bound.set()
        try:
            self._loop.run_forever()
        finally:
            self._channel.close()
            context.destroy(linger=0)
            self._loop.close()

    def _on_message(self, peer: str, message: Any) -> None:
        with self._news:
            self.heard.append((peer, message))
            self._news.notify_all()

    def wait_for(self, kind: type, identity: str, seconds: float = 20.0, count: int = 1) -> Any:
        """The `count`-th message of this kind from a child. Raises TimeoutError with what was heard instead."""

        def found() -> list[Any]:
            return [message for peer, message in self.heard if peer == identity and isinstance(message, kind)]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= count, seconds):
                raise TimeoutError(f"no {kind.__name__} from {identity}; heard {self.heard}")
            return found()[count - 1]

    def tell(self, identity: str, message: Any) -> None:
        """Send to a child."""
        self._bound.wait(5)
        self._loop.call_soon_threadsafe(self._channel.send, message, identity)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)


_CHILD = """
import importlib, os, sys
import msgspec
from ipc.config import ChildSpec
from scheduler_proc.run import run
if os.environ.get("TEST_PRELUDE"):
    importlib.import_module(os.environ["TEST_PRELUDE"])
spec = msgspec.json.decode(os.read(int(os.environ["QUIRE_SPEC_FD"]), 1 << 22), type=ChildSpec)
sys.exit(run(spec))
"""


@dataclass
class FakeEngine:
    """A real scheduler process with a fake worker. `frontend_spec` is what a frontend, or its EngineClient, is started with."""

    spec: ChildSpec  # the scheduler's
    arena: Arena
    supervisor: FakeSupervisor
    scheduler: subprocess.Popen[bytes]
    workers: list[FakeWorker] = field(default_factory=list)
    worker_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]

    def next_spec(self, role: Literal["frontend", "worker"], index: int = 0, **fds: int) -> ChildSpec:
        """A spec with a fresh epoch."""
        self.epochs += 1
        return msgspec.structs.replace(self.spec, role=role, index=index, epoch=self.epochs, fds={**self.spec.fds, **fds})

    def frontend_spec(self, index: int = 0, **fds: int) -> ChildSpec:
        """Spec of one more frontend; fds adds descriptors, such as listen=..."""
        return self.next_spec("frontend", index, **fds)

    def start_worker(self, **options: Any) -> FakeWorker:
        """One more worker of rank 0 (its predecessor should be lost first); kind: its class."""
        options = {**self.worker_options, **options}
        worker: FakeWorker = options.pop("kind", FakeWorker)(self.next_spec("worker"), **options)
        self.workers.append(worker)
        worker.start()
        return worker

    def lose_worker(self) -> None:
        """Crash the worker and let the supervisor tell of it."""
        self.worker.crash()
        self.tell_gone(self.worker.spec)

    def tell_gone(self, spec: ChildSpec) -> None:
        """Let the supervisor tell the scheduler of a death."""
        self.supervisor.tell(self.spec.identity, PeerGone(spec.role, spec.index, spec.epoch))

    def drain(self) -> None:
        self.supervisor.tell(self.spec.identity, Drain(time.monotonic_ns() + 10**10))


def small_model(**changes: Any) -> ModelInfo:
    """A ModelInfo that no file stands behind: 1,000 tokens, of which 2 ends a request, context 512."""
    fields: dict[str, Any] = {
        "path": "",
        "tokenizer_path": "",
        "name": "toy",
        "architecture": "ToyForCausalLM",
        "vocab_size": 1000,
        "max_model_len": 512,
        "eos_token_ids": [2],
    }
    return ModelInfo(**{**fields, **changes})


@contextlib.contextmanager
def fake_engine(config: Config | None = None, model: ModelInfo | None = None, **worker_options: Any) -> Iterator[FakeEngine]:
    """Start a scheduler process and a FakeWorker(**worker_options); yields the FakeEngine once plans may flow."""
    from ipc.messages import Ready

    config, model = config or Config(), model or small_model()
    with tempfile.TemporaryDirectory(prefix="quire-test-") as directory:
        arena = Arena.create(Dimensions.of(config, model))
        death_read, death_write = os.pipe()
        spec = ChildSpec(
            role="scheduler",
            index=0,
            epoch=1,
            scheduler_epoch=1,
            runtime_dir=directory,
            device="cpu",
            config=config,
            model=model,
            fds={"arena": arena.fd, "death": death_read},
        )
        supervisor = FakeSupervisor(spec.address("supervisor"), epoch=0)
        supervisor.start()
        process = start_scheduler(spec)
        engine = FakeEngine(spec, arena, supervisor, process, worker_options=worker_options)
        try:
            engine.start_worker()
            supervisor.wait_for(Ready, spec.identity)
            yield engine
            engine.worker.close()
        finally:
            supervisor.tell(spec.identity, Stop())
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for worker in engine.workers:
                with contextlib.suppress(BaseException):
                    worker.close()
            supervisor.close()
            for fd in (death_read, death_write, arena.fd):
                os.close(fd)


def start_scheduler(spec: ChildSpec) -> subprocess.Popen[bytes]:
    """The scheduler as a child process of the calling thread, which must outlive it."""
    spec_fd = os.memfd_create("quire-spec")
    os.write(spec_fd, msgspec.json.encode(spec))
    os.lseek(spec_fd, 0, os.SEEK_SET)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            cwd=ROOT,
            env={**os.environ, "QUIRE_SPEC_FD": str(spec_fd)},
            pass_fds=[spec_fd, *spec.fds.values()],
        )
    finally:
        os.close(spec_fd)
