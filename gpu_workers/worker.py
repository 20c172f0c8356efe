"""The worker's loop: joins the scheduler, loads the model, executes plans as their doorbells ring."""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import Any

from gpu_workers import collectives, kv_cache
from gpu_workers.device import Device, open_device
from gpu_workers.device.base import Runner, Serving
from gpu_workers.models.load import load
from ipc.actor import Actor
from ipc.arena import PlanHeader, ResultHeader, Stat
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ProtocolError, QuireError
from ipc.messages import Drain, Drained, KVReady, KVSize, Masks, SchedulerToWorker, StepPlan, StepResult, WorkerReady

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.2
# No step takes so long, were it the largest of the largest model: a rank waits for another that does not come.
STEP_SECONDS = 30.0


class _Step:
    """A plan whose doorbell has rung. begun: its first half, when that is done. busy_ns: time spent on that; resumed_ns: when its second
    half began."""

    __slots__ = ("begun", "busy_ns", "number", "resumed_ns", "slot")

    def __init__(self, doorbell: StepPlan) -> None:
        self.number, self.slot = doorbell.step, doorbell.slot
        self.begun: Any = None
        self.busy_ns = self.resumed_ns = 0


class Worker(Actor):
    """One rank. Everything happens on the loop, in the messages' handlers, and steps run strictly in the order they were rung.

    A step whose masks follow its plan is begun at once and finished when `Masks` comes; until then the loop is free. On a GPU both
    halves are only given to the device, which goes on to the next step while the results of one are on their way.
    """

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.rank, self.num_ranks = spec.index, spec.config.parallel.tensor_parallel_size
        self._scheduler: Channel[Any] | None = None
        self._runner: Runner | None = None
        self._device: Device | None = None
        self._last_progress = 0.0
        self._num_blocks = self._block_bytes = 0
        self._steps: deque[_Step] = deque()  # rung and not finished; only the first may have begun
        self._masked: set[int] = set()  # of these, the steps that Masks has come for
        self._num_computing = 0  # steps whose results are not there yet
        self._last_done_ns = 0
        self._draining = self._idle_soon = False

    async def start(self) -> None:
        self._connect()
        started = time.monotonic()
        config = self.spec.config
        device = self._device = open_device(self.spec.device, self.rank, config)
        self.ranks = collectives.join(self.rank, self.num_ranks, device.collectives, self._rendezvous())
        self.model = load(config, self.spec.model, device, self.ranks, self._progress)
        self._serving = Serving(self.model, self.spec.model, self.ranks, self.arena)
        spec, heads = self.model.spec, self.model.heads
        self._block_bytes = kv_cache.bytes_per_block(
            spec.num_layers, heads.num_kv, config.cache.block_size, spec.head_dim, device.cache_dtype(self.model.dtype)
        )
        self._num_blocks = kv_cache.affordable_blocks(config, device, self._block_bytes, self._serving)
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

    def fail(self, error: BaseException) -> None:
        starting = self._device is not None and self._runner is None
        super().fail(self._device.explain(error) if starting and self._device is not None else error)

    def on_drain(self, message: Drain) -> None:
        self._draining = True
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining and not self._steps and not self._num_computing:
            self._draining = False
            self.supervisor.send(Drained(self.spec.role, self.spec.index))

    def heartbeat(self) -> None:
        super().heartbeat()
        self.status[Stat.DROPPED_FRAMES] = self._scheduler.dropped if self._scheduler is not None else 0
        if self.num_ranks > 1 and self._runner is not None and self._runner.waiting_seconds > STEP_SECONDS:
            self._give_up_on_others()

    def _give_up_on_others(self) -> None:
        """A step of several ranks does not end: one of them is missing, and the others would wait for ever."""
        records = [self.arena.status("worker", rank) for rank in range(self.num_ranks)]
        why = collectives.who_is_silent(records, time.monotonic_ns())
        self.ranks.close()
        self.fail(QuireError(f"a step has not ended for {STEP_SECONDS:.0f} s: {why}"))

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
        self._runner = self._device.runner(self._serving, num_blocks, self.loop.call_soon_threadsafe)
        self._scheduler.send(KVReady(self.rank))
        self.ready(f"{num_blocks} KV blocks, {num_blocks * self._block_bytes / 2**20:.0f} MiB")
        self._schedule_idle()

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
        assert self._runner is not None and step.begun is not None
        self._num_computing += 1
        step.resumed_ns = time.monotonic_ns()
        self._runner.finish(step.begun, self.arena.results[step.slot], partial(self._done, step))

    def _done(self, step: _Step) -> None:
        """The step's result is in its slot."""
        assert self._scheduler is not None
        self._num_computing -= 1
        now = time.monotonic_ns()
        # While steps overlap, the time of one begins where that of the one before ends.
        step.busy_ns += now - max(step.resumed_ns, self._last_done_ns)
        self._last_done_ns = now
        self.status[Stat.STEPS] += 1
        self.status[Stat.FORWARD_NS] += step.busy_ns
        self.status[Stat.STEP_TOKENS] += step.begun.inputs.num_tokens
        if self.rank == 0:
            result = self.arena.results[step.slot]
            result.header[ResultHeader.STEP] = step.number
            result.header[ResultHeader.FORWARD_NS] = step.busy_ns
            self._scheduler.send(StepResult(step.number, step.slot))
        self._check_drained()
        self._schedule_idle()

    def _schedule_idle(self) -> None:
        if not self._idle_soon:
            self._idle_soon = True
            self.loop.call_soon(self._on_idle)

    def _on_idle(self) -> None:
        """Between two messages: let the runner prepare what makes later steps faster, a little at a time."""
        self._idle_soon = False
        if self._runner is not None and not self._steps and not self._num_computing and self._runner.spare_time():
            self._schedule_idle()
