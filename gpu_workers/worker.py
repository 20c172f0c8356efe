"""The worker's loop: joins the scheduler, loads the model, executes plans as their doorbells ring."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from gpu_workers import collectives, kv_cache
from gpu_workers.device import Device, open_device
from gpu_workers.models.load import load
from gpu_workers.runner import Begun, ModelRunner
from ipc.actor import Actor
from ipc.arena import PlanHeader, ResultHeader, Stat
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ProtocolError
from ipc.messages import Drain, Drained, KVReady, KVSize, Masks, SchedulerToWorker, StepPlan, StepResult, WorkerReady

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.2


class _Step:
    """A plan whose doorbell has rung. begun: its first half, when that is done. busy_ns: time spent on it so far."""

    __slots__ = ("begun", "busy_ns", "number", "slot")

    def __init__(self, doorbell: StepPlan) -> None:
        self.number, self.slot = doorbell.step, doorbell.slot
        self.begun: Begun | None = None
        self.busy_ns = 0


class Worker(Actor):
    """One rank. Everything happens on the loop, in the messages' handlers, and steps run strictly in the order they were rung.

    A step whose masks follow its plan is begun at once and finished when `Masks` comes; until then the loop is free.
    """

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.rank, self.num_ranks = spec.index, spec.config.parallel.tensor_parallel_size
        self._scheduler: Channel[Any] | None = None
        self._runner: ModelRunner | None = None
        self._device: Device | None = None
        self._last_progress = 0.0
        self._num_blocks = self._block_bytes = 0
        self._steps: deque[_Step] = deque()  # rung and not finished; only the first may have begun
        self._masked: set[int] = set()  # of these, the steps that Masks has come for
        self._draining = False

    async def start(self) -> None:
        self._connect()
        started = time.monotonic()
        config = self.spec.config
        device = self._device = open_device(self.spec.device, self.rank, config)
        self.ranks = collectives.join(self.rank, self.num_ranks, device.collectives, self._rendezvous())
        self.model = load(config, self.spec.model, device, self.ranks, self._progress)
        spec, heads = self.model.spec, self.model.heads
        self._block_bytes = kv_cache.bytes_per_block(
            spec.num_layers, heads.num_kv, config.cache.block_size, spec.head_dim, self.model.dtype
        )
        self._num_blocks = kv_cache.affordable_blocks(config, device, self._block_bytes, self.arena.dimensions)
        log.info(
            "%s in %s loaded in %.1f s on %s", self.spec.model.architecture, str(self.model.dtype).removeprefix("torch."),
            time.monotonic() - started, device.name,
        )  # fmt: skip
        self._announce()

    async def stop(self) -> None:
        if self._device is not None:
            self._device.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def on_drain(self, message: Drain) -> None:
        self._draining = True
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining and not self._steps:
            self._draining = False
            self.supervisor.send(Drained(self.spec.role, self.spec.index))

    def heartbeat(self) -> None:
        super().heartbeat()
        self.status[Stat.DROPPED_FRAMES] = self._scheduler.dropped if self._scheduler is not None else 0

    def _connect(self) -> None:
        spec = self.spec
        self._scheduler = Channel.dealer(self.context, spec.address("workers"), spec.identity, SchedulerToWorker, spec.scheduler_epoch)
        self._scheduler.attach(self.loop, self._on_scheduler)

    def _announce(self) -> None:
        assert self._scheduler is not None
        self._scheduler.send(WorkerReady(self.rank, self._num_blocks, self._block_bytes))

    def _rendezvous(self) -> str:
        # All ranks of one group life share an epoch (quire/supervisor.py), and no other group ever has it.
        return f"{self.spec.runtime_dir}/ranks-{self.spec.epoch}"

    def _progress(self, done: int, total: int) -> None:
        """Show that loading goes on: to the user a few times a second, to the supervisor as a heartbeat."""
        now = time.monotonic()
        if done == total or now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self.heartbeat()
            self.loading("weights", done, total)

    def _on_scheduler(self, _peer: str, message: Any) -> None:
        match message:
            case StepPlan():
                self._steps.append(_Step(message))
                self._go_on()
            case Masks():
                self._masked.add(message.step)
                self._go_on()
            case KVSize():
                self._allocate(message.num_blocks)

    def _allocate(self, num_blocks: int) -> None:
        assert self._scheduler is not None
        assert self._device is not None
        self._runner = ModelRunner(
            self.model, self._device, self.ranks, self.arena.dimensions, self.spec.config.cache.block_size, num_blocks
        )
        self._scheduler.send(KVReady(self.rank))
        self.ready(f"{num_blocks} KV blocks, {num_blocks * self._block_bytes / 2**20:.0f} MiB")

    def _go_on(self) -> None:
        """Do what can be done of the steps that have been rung."""
        while self._steps:
            step = self._steps[0]
            if step.begun is None:
                self._begin(step)
            if self.arena.plans[step.slot].header[PlanHeader.MASKS_FOLLOW] and step.number not in self._masked:
                return
            self._finish(step)
            self._steps.popleft()
            self._masked.discard(step.number)
        self._check_drained()

    def _begin(self, step: _Step) -> None:
        if self._runner is None:
            raise ProtocolError(f"the plan of step {step.number} came before KVSize")
        began = time.monotonic_ns()
        plan = self.arena.plans[step.slot]
        plan.check_step(step.number)
        step.begun = self._runner.begin(plan)
        step.busy_ns = time.monotonic_ns() - began

    def _finish(self, step: _Step) -> None:
        assert self._runner is not None and self._scheduler is not None and step.begun is not None
        began = time.monotonic_ns()
        result = self.arena.results[step.slot]
        self._runner.finish(step.begun, result)
        step.busy_ns += time.monotonic_ns() - began
        self.status[Stat.STEPS] += 1
        self.status[Stat.FORWARD_NS] += step.busy_ns
        self.status[Stat.STEP_TOKENS] += len(step.begun.inputs.token_ids)
        if self.rank == 0:
            result.header[ResultHeader.STEP] = step.number
            result.header[ResultHeader.FORWARD_NS] = step.busy_ns
            self._scheduler.send(StepResult(step.number, step.slot))
