"""Finds the processes of an engine that hang, and tells systemd that none does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from ipc.arena import I64, Stat
from quire.child_process import Child
from quire.systemd import Notifier

TICK_SECONDS = 1.0
# Runnable requests and ready workers, but no step for this long: the engine is stuck, however well all hearts beat.
STALL_SECONDS = 600.0


class Watchdog:
    """Kills a child that hangs. children: those that live, as they come and go. status: the scheduler's record."""

    def __init__(self, children: Collection[Child], status: I64, notifier: Notifier) -> None:
        self._children, self._status, self._notifier = children, status, notifier
        self._last_tick = time.monotonic()
        self._last_fed = 0.0

    async def run(self) -> None:
        """Look each second, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Is anybody hung? Tell systemd only when nobody is."""
        if now - self._last_tick > 3 * TICK_SECONDS:
            # This process was itself stopped or starved, and so perhaps were they.
            for child in self._children:
                child.sign_of_life()
        self._last_tick = now
        hung = [(child, why) for child in self._children if not child.condemned and (why := child.overdue(now))]
        workers = [child for child in self._children if child.spec.role == "worker"]
        if not hung and workers and self._stalled(workers, now):
            hung = [(workers[0], f"finished no step for {STALL_SECONDS:.0f} s")]
        for child, why in hung:
            child.kill(why)
        half = self._notifier.watchdog_seconds / 2
        if half and not hung and now - self._last_fed >= half - TICK_SECONDS:
            self._notifier.send("WATCHDOG=1")
            self._last_fed = now

    def _stalled(self, workers: list[Child], now: float) -> bool:
        """Whether requests could run and nothing does. Times of the status record are on the same clock."""
        if not all(child.ready for child in self._children):
            return False
        oldest, last = int(self._status[Stat.OLDEST_RUNNABLE_NS]) / 1e9, int(self._status[Stat.LAST_STEP_NS]) / 1e9
        ready_since = max(worker.ready_since for worker in workers)
        return oldest > 0 and now - max(oldest, last, ready_since) > STALL_SECONDS
