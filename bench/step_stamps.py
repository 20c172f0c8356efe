"""Stamps of a step on its way through worker, scheduler and frontend, for bench.step_path: imported into them, it wraps what they call.

The file that BENCH_STAMPS names holds int64[len(STAMPS), MAX_STEPS] CLOCK_MONOTONIC nanoseconds; one process writes each row.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

MAX_STEPS = 1 << 17
# In the order of the tokens' way; the next step's doorbell rings after they are sent, or before that if the worker has no step in hand.
STAMPS = ("sampled", "result read", "applied", "tokens sent", "tokens read", "frames sent", "all written", "next rung")
VARIABLE = "BENCH_STAMPS"


def create(path: str) -> np.memmap[Any, np.dtype[np.int64]]:
    return np.memmap(path, np.int64, "w+", shape=(len(STAMPS), MAX_STEPS))


class Stamps:
    """Wraps the methods of whatever role this process has."""

    def __init__(self, path: str) -> None:
        self._stamps = np.memmap(path, np.int64, "r+", shape=(len(STAMPS), MAX_STEPS))
        self._step = 0  # whose result the scheduler has in hand

    def mark(self, name: str, step: int) -> None:
        self._stamps[STAMPS.index(name), step % MAX_STEPS] = time.monotonic_ns()

    def worker(self, module: Any) -> None:
        done = module.Worker._done

        def stamped(worker: Any, step: Any) -> None:
            self.mark("sampled", step.number)
            done(worker, step)

        module.Worker._done = stamped

    def loop(self, module: Any) -> None:
        on_result, send = module.SchedulerActor._on_result, module.SchedulerActor._send

        def stamped_on_result(actor: Any, peer: str, message: Any) -> None:
            self._step = message.step
            self.mark("result read", self._step)
            on_result(actor, peer, message)

        def stamped_send(actor: Any, emissions: list[Any]) -> None:
            send(actor, emissions)
            if emissions:
                self.mark("tokens sent", self._step)

        module.SchedulerActor._on_result, module.SchedulerActor._send = stamped_on_result, stamped_send

    def scheduler(self, module: Any) -> None:
        apply = module.Scheduler.apply

        def stamped(scheduler: Any, *arguments: Any) -> Any:
            emissions = apply(scheduler, *arguments)
            self.mark("applied", self._step)
            return emissions

        module.Scheduler.apply = stamped

    def group(self, module: Any) -> None:
        ring = module.WorkerGroup.ring

        def stamped(group: Any, *arguments: Any) -> None:
            ring(group, *arguments)
            self.mark("next rung", self._step)

        module.WorkerGroup.ring = stamped

    def frontend(self, module: Any) -> None:
        on_tokens = module.Delivery.tokens

        def stamped(delivery: Any, message: Any) -> None:
            self.mark("tokens read", message.step)
            on_tokens(delivery, message)
            self.mark("frames sent", message.step)
            # What a full socket left over is written after the callbacks of this turn, and so before those of the second from here.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self.mark, "all written", message.step)

        module.Delivery.tokens = stamped


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a hook with a module when that has been imported, whoever imports it."""

    def __init__(self, hooks: dict[str, Callable[[Any], None]]) -> None:
        self._hooks = hooks

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        hook = self._hooks.pop(name, None)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if hook is not None else None
        if hook is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_hook(module: ModuleType) -> None:
            run(module)
            hook(module)

        spec.loader.exec_module = run_and_hook  # type: ignore[method-assign]
        return spec


def install(path: str) -> None:
    stamps = Stamps(path)
    hooks = {
        "gpu_workers.worker": stamps.worker, "scheduler_proc.loop": stamps.loop, "scheduler_proc.scheduler": stamps.scheduler,
        "scheduler_proc.worker_group": stamps.group, "frontend.delivery": stamps.frontend,
    }  # fmt: skip
    for name in [name for name in hooks if name in sys.modules]:
        hooks.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport(hooks))


if os.environ.get(VARIABLE):
    install(os.environ[VARIABLE])
