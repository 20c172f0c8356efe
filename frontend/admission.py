"""Whether to take a request now: looks at the engine's state in shared memory, so a full or dead engine is not asked first."""

from __future__ import annotations

import math
import time
from typing import Any

from ipc.arena import I64, Arena, Stat, State
from ipc.config import ChildSpec
from ipc.errors import EngineDeadError, QueueFullError

SCHEDULER_STALE_SECONDS = 10.0
WORKER_STALE_SECONDS = 60.0  # a worker's loop stands still while it computes a long step
STEP_STALE_SECONDS = 120.0
RETRY_LOADING_SECONDS = 5.0
_RATE_WINDOW_SECONDS = 2.0


class Admission:
    """Reads the status records of one engine."""

    def __init__(self, spec: ChildSpec, arena: Arena) -> None:
        self._spec = spec
        self._scheduler = arena.status("scheduler")
        self._workers = [arena.status("worker", rank) for rank in range(spec.config.parallel.tensor_parallel_size)]
        self._served = False
        self._rate = _Rate()
        self.draining = False

    def check(self, count: int, ended: int) -> None:
        """Raise unless `count` more requests can be taken. ended: requests that have ended in this process so far.

        EngineDeadError while draining or before the engine first served; a scheduler that is being restarted is waited for, not refused.
        QueueFullError when the queue is full, with the time until it should have room at the rate of the last seconds.
        """
        if self.draining:
            raise EngineDeadError("the server is shutting down and takes no new requests")
        self.check_served()
        self._rate.note(ended)
        waiting, limit = int(self._scheduler[Stat.NUM_WAITING]), self._spec.config.scheduler.max_queued_requests
        if waiting + count > limit:
            raise QueueFullError(
                f"{waiting} requests are waiting already, of {limit} that may; {count} more were asked for",
                self._rate.seconds_for(waiting + count - limit),
            )

    def check_served(self) -> None:
        """Raise EngineDeadError until the engine has been ready once."""
        if not self._served:
            if self._scheduler[Stat.STATE] not in (State.READY, State.DRAINING):
                raise EngineDeadError("the model is still loading")
            self._served = True

    def health(self) -> tuple[str, dict[str, Any]]:
        """('ok' or what is wrong, details). Nothing is asked of the engine: it shows in the records whether it moves."""
        now = time.monotonic_ns()
        record = self._scheduler
        problem = "ok"
        if self.draining:
            problem = "draining"
        elif record[Stat.STATE] != State.READY:
            problem = "loading"
        elif _age(record, Stat.HEARTBEAT_NS, now) > SCHEDULER_STALE_SECONDS:
            problem = "scheduler does not respond"
        elif any(worker[Stat.PID] and _age(worker, Stat.HEARTBEAT_NS, now) > WORKER_STALE_SECONDS for worker in self._workers):
            problem = "worker does not respond"
        elif self._stalled(now):
            problem = "no step for too long"
        return problem, {
            "running": int(record[Stat.NUM_RUNNING]),
            "waiting": int(record[Stat.NUM_WAITING]),
            "steps": int(record[Stat.STEPS]),
            "kv_blocks_used": int(record[Stat.BLOCKS_USED]),
            "kv_blocks_total": int(record[Stat.BLOCKS_TOTAL]),
        }

    def _stalled(self, now: int) -> bool:
        oldest, last = int(self._scheduler[Stat.OLDEST_RUNNABLE_NS]), int(self._scheduler[Stat.LAST_STEP_NS])
        return bool(oldest) and (now - max(oldest, last)) * 1e-9 > STEP_STALE_SECONDS


class _Rate:
    """Requests that end per second, over a short window."""

    def __init__(self) -> None:
        self._since, self._count, self._rate = time.monotonic(), 0, 0.0

    def note(self, ended: int) -> None:
        now = time.monotonic()
        if now - self._since >= _RATE_WINDOW_SECONDS:
            self._rate = (ended - self._count) / (now - self._since)
            self._since, self._count = now, ended

    def seconds_for(self, requests: int) -> float:
        return float(min(60, max(1, math.ceil(requests / self._rate)))) if self._rate > 0 else 2.0


def _age(record: I64, word: Stat, now: int) -> float:
    return (now - int(record[word])) * 1e-9
