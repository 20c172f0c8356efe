"""A worker on a thread, for tests of schedulers and frontends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any

import zmq

from ipc.arena import Arena, Dimensions, PlanHeader
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.messages import KVReady, KVSize, Masks, SchedulerToWorker, StepPlan, StepResult, WorkerReady
from tests.paged_toy import NextToken, PagedToy, echo


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
