"""The scheduler's shell: drains sockets into the core, writes its plans into the arena, rings doorbells, sends tokens.

Everything happens in callbacks of the loop; nothing polls, and no timer runs while there is nothing to do.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import time
from typing import Any

from ipc.actor import Actor
from ipc.arena import NUM_SLOTS
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ChannelFullError, ConfigError
from ipc.messages import (
    Abort,
    Drain,
    Drained,
    FrontendToScheduler,
    KVReady,
    PeerGone,
    PrefixCacheReset,
    RefuseCode,
    Refused,
    StepResult,
    Submit,
    WorkerReady,
    WorkerToScheduler,
)
from scheduler_proc.constraint import Answer
from scheduler_proc.emissions import Emission
from scheduler_proc.grammar import GrammarDesk
from scheduler_proc.grammar_facts import TokenizerFacts
from scheduler_proc.metrics import StatusWriter
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.worker_group import WorkerGroup

log = logging.getLogger(__name__)

SECRET_BYTES = 32
# Long-lived state is frozen after start; what a step leaves behind holds no cycles, so collections may be rare.
GC_THRESHOLDS = (50_000, 50, 1_000)


class SchedulerActor(Actor):
    """Joins one Scheduler to its frontends and workers.

    The core exists from the moment the workers stand for the first time; requests that come before wait in `_early`.
    """

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self._core: Scheduler | None = None
        self._early: list[tuple[str, Submit]] = []
        self._writer = StatusWriter(self.status)
        self._step = 0
        self._turn_soon = False
        self._draining = False
        self._drained = False
        self._dead_frontends: set[str] = set()
        self._ranks = spec.config.parallel.tensor_parallel_size
        self._desk: GrammarDesk | None = None

    async def start(self) -> None:
        spec = self.spec
        self._workers: Channel[Any] = Channel.router(self.context, spec.address("workers"), WorkerToScheduler, spec.epoch)
        self._frontends: Channel[Any] = Channel.router(self.context, spec.address("frontends"), FrontendToScheduler, spec.epoch)
        self._group = WorkerGroup(self._workers, self._ranks, spec.config.cache.num_blocks, self._on_standing)
        if spec.config.structured_outputs.grammar_processes:
            facts = TokenizerFacts(
                os.path.join(spec.model.tokenizer_path, "tokenizer.json"), spec.model.vocab_size, spec.model.eos_token_ids
            )
            self._desk = GrammarDesk(facts, spec.config.structured_outputs, self._deliver)
            self._desk.start()
        self._workers.attach(self.loop, self._on_worker)
        self._frontends.attach(self.loop, self._on_frontend)

    async def stop(self) -> None:
        if hasattr(self, "_frontends"):
            self._workers.close()
            self._frontends.close()
        if self._desk is not None:
            self._desk.close()

    # Messages

    def _on_frontend(self, peer: str, message: Any) -> None:
        if peer in self._dead_frontends:
            return
        match message:
            case Submit():
                self._submit(peer, message)
            case Abort():
                for handle in message.handles:
                    if self._core is not None:
                        self._core.abort(peer, handle)
                    self._early = [entry for entry in self._early if entry[0] != peer or entry[1].handle != handle]
        self._schedule_turn()

    def _submit(self, peer: str, message: Submit) -> None:
        if self._core is not None:
            refused = self._core.add(message, peer, time.monotonic_ns())
            self._order()
        elif self._draining:
            refused = Refused(message.handle, RefuseCode.DRAINING, "the engine is shutting down")
        elif len(self._early) >= self.spec.config.scheduler.max_queued_requests:
            refused = Refused(message.handle, RefuseCode.QUEUE_FULL, "the model is being loaded", "", 5.0)
        else:
            self._early.append((peer, message))
            return
        if refused is not None:
            self._tell(peer, refused)

    def _on_worker(self, peer: str, message: Any) -> None:
        match message:
            case StepResult():
                self._on_result(peer, message)
            case WorkerReady():
                if self._group.ready(peer, message):
                    self._workers_lost()
            case KVReady():
                self._group.allocated(peer, message)

    def _on_standing(self, num_blocks: int) -> None:
        """All workers can compute now, for the first time or again."""
        if num_blocks < 1:
            self.fail(ConfigError("the workers have no memory for even one KV block; raise kv_cache_memory"))
            return
        if self._core is None:
            self._core = Scheduler(self.spec.config, self.spec.model, num_blocks, secrets.token_bytes(SECRET_BYTES))
            if self._draining:
                self._core.drain()
            early, self._early = self._early, []
            for peer, message in early:
                self._submit(peer, message)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        elif num_blocks != self._core.kv.pool.num_blocks:
            self._core.resize(num_blocks)
        tokens = num_blocks * self.spec.config.cache.block_size
        if self._draining:
            log.info("%d KV blocks (%d tokens); draining", num_blocks, tokens)
        else:
            self.ready(f"{num_blocks} KV blocks ({tokens} tokens) on {self._ranks} worker{'s' * (self._ranks > 1)}")
        self._schedule_turn()

    def _on_result(self, peer: str, message: StepResult) -> None:
        core = self._core
        if core is None or not self._group.reports(peer):
            self._group.num_stray += 1
            return
        result = self.arena.results[message.slot % NUM_SLOTS]
        result.check_step(message.step)
        began = time.monotonic_ns()
        emissions = core.apply(result, began)
        core.counters.apply_ns += time.monotonic_ns() - began
        self._order()
        # While the workers have another step in hand, the words about the last are more urgent than a plan for later.
        if core.num_in_flight:
            self._send(emissions)
            self._turn()
        else:
            self._turn()
            self._send(emissions)

    def on_drain(self, message: Drain) -> None:
        self._draining = True
        if self._core is not None:
            self._core.drain()
        self._schedule_turn()

    def on_reset_prefix_cache(self) -> None:
        forgotten = self._core.kv.forget_unused() if self._core is not None else 0
        self.supervisor.send(PrefixCacheReset(forgotten))
        self._schedule_turn()

    def on_peer_gone(self, message: PeerGone) -> None:
        identity = f"{message.role}.{message.index}.{message.epoch}"
        if message.role == "frontend":
            self._frontend_gone(identity)
        elif message.role == "worker" and self._group.lost(identity):
            self._workers_lost()
        self._schedule_turn()

    def _frontend_gone(self, identity: str) -> None:
        self._dead_frontends.add(identity)
        self._frontends.forget(identity)
        self._early = [entry for entry in self._early if entry[0] != identity]
        if self._core is not None:
            self._core.frontend_gone(identity)

    def _workers_lost(self) -> None:
        log.warning("a worker is gone; running requests wait for its successor")
        if self._core is not None:
            self._core.workers_lost()

    # Grammars

    def _order(self) -> None:
        """Give the grammar desk what it is to do."""
        assert self._core is not None
        orders = self._core.orders()
        if orders and self._desk is not None:
            self._desk.take(orders)

    def _deliver(self, answers: list[Answer]) -> None:
        """Called from the desk's threads."""
        try:
            self.loop.call_soon_threadsafe(self._on_answers, answers)
        except RuntimeError:  # the loop has ended, and everything with it
            pass

    def _on_answers(self, answers: list[Answer]) -> None:
        assert self._core is not None
        for peer, refused in self._core.answer(answers):
            self._tell(peer, refused)
        self._turn()

    # Work

    def _schedule_turn(self) -> None:
        """Plan once after all messages that have arrived together."""
        if not self._turn_soon:
            self._turn_soon = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Plan as many steps as may be out, tell of ends, and keep the numbers."""
        self._turn_soon = False
        core = self._core
        if core is None:
            self._check_drained(not self._early)
            return
        self._ring_masks(core)
        while self._group.standing and core.may_plan:
            began = time.monotonic_ns()
            slot = self._step % NUM_SLOTS
            planned = core.plan(began, self.arena.plans[slot], self._step)
            core.counters.plan_ns += time.monotonic_ns() - began
            if not planned:
                break
            self._group.ring(self._step, slot)
            self._step += 1
        self._ring_masks(core)
        self._send(core.emissions(time.monotonic_ns(), self._step))
        self._writer.write(core, self._step, self._frontends.dropped + self._workers.dropped + self._group.num_stray)
        self._check_drained(not core.num_requests)

    def _ring_masks(self, core: Scheduler) -> None:
        for step in core.masked():
            self._group.ring_masks(step)

    def _check_drained(self, empty: bool) -> None:
        if self._draining and empty and not self._drained:
            self._drained = True
            self.supervisor.send(Drained(self.spec.role, self.spec.index))

    def _send(self, emissions: list[Emission]) -> None:
        for peer, tokens in emissions:
            self._tell(peer, tokens)

    def _tell(self, peer: str, message: Any) -> None:
        try:
            self._frontends.send(message, peer)
        except ChannelFullError:
            # What it misses it can never get again, so it is as good as dead.
            log.error("%s does not read its messages; its requests are aborted", peer)
            self._frontend_gone(peer)
