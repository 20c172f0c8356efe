"""Which decode steps are replayed from a recorded graph, and when graphs are recorded: after the engine is ready, a few at a time.

A graph has a fixed number of rows, its bucket; a step takes the smallest one it fits into, and what is too much does nothing.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable

from gpu_workers.cuda.machine import Graph, Machine

log = logging.getLogger(__name__)

LARGEST = 512
# A bucket that comes up so often without a graph gets one at once, however busy the engine is: some 50 ms, paid back in hundreds of steps.
PATIENCE = 2


def buckets(max_rows: int) -> list[int]:
    """Small sizes exactly, then in steps of 8 and of 16: a step computes at most a seventh more rows than it has, or seven."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, LARGEST + 1, 16)]
    most = min(max_rows, LARGEST)
    return [size for size in sizes if size < most] + [most]


class DecodeGraphs:
    """Graphs by bucket. run(bucket) launches a decode step of that many rows; prepare() makes the next one a step without rows."""

    def __init__(self, machine: Machine, max_rows: int, prepare: Callable[[], None], run: Callable[[int], None]) -> None:
        self._machine, self._prepare, self._run = machine, prepare, run
        self.buckets = buckets(max_rows)
        self._graphs: dict[int, Graph] = {}
        self._missed: dict[int, int] = {}
        self._seconds = 0.0

    def bucket(self, rows: int) -> int | None:
        """The bucket whose graph serves so many decode rows, None for none (yet). The graph may be recorded now.

        Called before the step's plan is sent to the device: recording leaves a step without rows there.
        """
        place = bisect_left(self.buckets, rows)
        if not rows or place == len(self.buckets):
            return None
        bucket = self.buckets[place]
        if bucket not in self._graphs:
            self._missed[bucket] = self._missed.get(bucket, 0) + 1
            if self._missed[bucket] < PATIENCE:
                return None
            self._record(bucket)
        return bucket if bucket in self._graphs else None

    def replay(self, bucket: int) -> None:
        self._graphs[bucket].replay()

    def record_next(self) -> bool:
        """Record one graph that is missing, those that were missed first, then the smallest; whether there was one."""
        missing = [bucket for bucket in self.buckets if bucket not in self._graphs]
        if not missing:
            return False
        self._record(max(missing, key=lambda bucket: (self._missed.get(bucket, 0), -bucket)))
        if len(missing) == 1 and self._graphs:
            log.info("%d decode graphs recorded in %.1f s", len(self._graphs), self._seconds)
        return True

    def _record(self, bucket: int) -> None:
        began = time.monotonic()
        self._prepare()
        # Once for real: modules are loaded and workspaces allocated then, which recording must not do.
        self._run(bucket)
        try:
            self._graphs[bucket] = self._machine.capture(lambda: self._run(bucket))
        except RuntimeError as error:
            log.warning("decode steps are launched without graphs, which is slower: recording %d rows failed: %s", bucket, error)
            self.buckets = [size for size in self.buckets if size in self._graphs]
        self._seconds += time.monotonic() - began
