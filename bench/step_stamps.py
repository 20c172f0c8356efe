"""Stamps of a step's way through scheduler and frontend, for bench.step_path: imported into those processes, it wraps what they call.

The file that BENCH_STAMPS names holds int64[len(STAMPS), MAX_STEPS] CLOCK_MONOTONIC nanoseconds; one process writes each row.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from bench.instant_worker import MAX_STEPS

# In the order of the tokens' way; the next step's doorbell rings after they are sent, or before that if the worker has no step in hand.
STAMPS = ("result read", "applied", "tokens sent", "tokens read", "frames sent", "all written", "next rung")
VARIABLE = "BENCH_STAMPS"


def create(path: str) -> np.memmap[Any, np.dtype[np.int64]]:
    return np.memmap(path, np.int64, "w+", shape=(len(STAMPS), MAX_STEPS))


def install() -> None:
    """Wrap the methods of both roles; only one of them is ever called in a process."""
    from frontend.engine_client import EngineClient
    from scheduler_proc.loop import SchedulerActor
    from scheduler_proc.scheduler import Scheduler
    from scheduler_proc.worker_group import WorkerGroup

    stamps = np.memmap(os.environ[VARIABLE], np.int64, "r+", shape=(len(STAMPS), MAX_STEPS))
    step = 0  # whose result the scheduler has in hand

    def mark(name: str, of: int) -> None:
        stamps[STAMPS.index(name), of % MAX_STEPS] = time.monotonic_ns()

    on_result, apply, ring, send, on_tokens = (
        SchedulerActor._on_result, Scheduler.apply, WorkerGroup.ring, SchedulerActor._send, EngineClient._on_tokens
    )  # fmt: skip

    def stamped_on_result(self: Any, peer: str, message: Any) -> None:
        nonlocal step
        step = message.step
        mark("result read", step)
        on_result(self, peer, message)

    def stamped_apply(self: Any, *arguments: Any) -> Any:
        emissions = apply(self, *arguments)
        mark("applied", step)
        return emissions

    def stamped_ring(self: Any, *arguments: Any) -> None:
        ring(self, *arguments)
        mark("next rung", step)

    def stamped_send(self: Any, emissions: list[Any]) -> None:
        send(self, emissions)
        if emissions:
            mark("tokens sent", step)

    def stamped_on_tokens(self: Any, message: Any) -> None:
        mark("tokens read", message.step)
        on_tokens(self, message)
        mark("frames sent", message.step)
        # What a full socket left over is written after the callbacks of this turn, and so before those of the second from here.
        self._loop.call_soon(self._loop.call_soon, mark, "all written", message.step)

    SchedulerActor._on_result, Scheduler.apply, WorkerGroup.ring = stamped_on_result, stamped_apply, stamped_ring  # type: ignore[method-assign]
    SchedulerActor._send, EngineClient._on_tokens = stamped_send, stamped_on_tokens  # type: ignore[method-assign]


if os.environ.get(VARIABLE):
    install()
