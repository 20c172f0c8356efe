"""The scheduler's numbers: counters that its core keeps, and the status record where everybody can read them."""

from __future__ import annotations

import heapq
import struct
from typing import TYPE_CHECKING

from ipc.arena import I64, Stat
from scheduler_proc.request import Request, Status

if TYPE_CHECKING:
    from scheduler_proc.flight import Flight
    from scheduler_proc.scheduler import Scheduler

_FIRST, _LAST = Stat.NUM_RUNNING, Stat.EMBEDDINGS
_WORDS = struct.Struct(f"={_LAST - _FIRST + 1}q")
_SMOOTHING = 0.1
_RETRY_RANGE = (1.0, 60.0)


class Counters:
    """What has happened so far in this process life, and who has waited longest."""

    def __init__(self) -> None:
        self.steps = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.embeddings = 0
        self.step_tokens = 0
        self.forward_ns = 0
        self.last_step_ns = 0
        self.plan_ns = 0
        self.apply_ns = 0
        self.evicted_before = 0
        self._ages: list[tuple[int, int, Request]] = []
        self._number = 0
        self._last_admission_ns = 0
        self._admission_interval_ns = 0.0

    def arrived(self, request: Request) -> None:
        self._number += 1
        heapq.heappush(self._ages, (request.arrival_ns, self._number, request))

    def oldest_arrival_ns(self) -> int:
        """Arrival of the oldest unfinished request, 0 if there is none."""
        ages = self._ages
        while ages and ages[0][2].status is Status.FINISHED:
            heapq.heappop(ages)
        return ages[0][0] if ages else 0

    def forget_finished(self, num_live: int) -> None:
        """Drop finished requests from the ages when they are the most; an old request at the top would keep them all."""
        if len(self._ages) > 2 * num_live + 1024:
            self._ages = [entry for entry in self._ages if entry[2].status is not Status.FINISHED]
            heapq.heapify(self._ages)

    def admitted(self, request: Request, num_cached: int, now_ns: int) -> None:
        """A waiting request got a row, with so many of its tokens cached."""
        if not request.first_planned_ns:
            request.first_planned_ns = now_ns
        if not request.skips_cache:
            self.prefix_queries += len(request.tokens)
            self.prefix_hits += num_cached
        if self._last_admission_ns:
            self._admission_interval_ns += _SMOOTHING * (now_ns - self._last_admission_ns - self._admission_interval_ns)
        self._last_admission_ns = now_ns

    def seconds_per_admission(self, now_ns: int) -> float:
        """After how long the queue is likely to have a place again."""
        since = now_ns - self._last_admission_ns if self._last_admission_ns else 0
        return min(max(max(self._admission_interval_ns, since) / 1e9, _RETRY_RANGE[0]), _RETRY_RANGE[1])

    def applied(self, flight: Flight, num_sampled: int, now_ns: int, forward_ns: int) -> None:
        """A step's result is in."""
        self.steps += 1
        self.last_step_ns = now_ns
        self.forward_ns += forward_ns
        self.step_tokens += flight.num_tokens
        self.generation_tokens += num_sampled
        self.prompt_tokens += sum(prefill.count for prefill in flight.prefills)


class StatusWriter:
    """Writes a scheduler's numbers into its status record, in one go. Others read at any time: a word is old or new, nothing between."""

    def __init__(self, status: I64) -> None:
        self._status = status
        self._words = status.data.cast("B")[8 * _FIRST : 8 * (_LAST + 1)]

    def write(self, scheduler: Scheduler, num_planned: int, num_dropped: int) -> None:
        """In the order of Stat's words."""
        counters, pool = scheduler.counters, scheduler.kv.pool
        counters.forget_finished(scheduler.num_requests)
        status = self._status
        status[Stat.STEPS] = num_planned
        status[Stat.DROPPED_FRAMES] = num_dropped
        # Packed elsewhere and copied: pack_into begins with zeros, and who reads meanwhile would see counters that went back.
        self._words[:] = _WORDS.pack(
            scheduler.num_running,
            scheduler.num_waiting,
            pool.num_blocks,
            pool.num_used,
            pool.num_evictable,
            counters.prefix_queries,
            counters.prefix_hits,
            counters.preemptions,
            counters.prompt_tokens,
            counters.generation_tokens,
            counters.oldest_arrival_ns(),
            counters.last_step_ns,
            counters.plan_ns,
            counters.apply_ns,
            counters.forward_ns,
            counters.evicted_before + scheduler.kv.cache.num_evicted,
            counters.step_tokens,
            counters.embeddings,
        )
