"""Which waiting requests start in a step, and which running ones must give way to them."""

from __future__ import annotations

import numpy as np

from scheduler_proc import row_setup
from scheduler_proc.flight import Flight
from scheduler_proc.lifecycle import Lifecycle
from scheduler_proc.plan_writer import PlanWriter
from scheduler_proc.policy import Policy, is_behind
from scheduler_proc.prefill import PrefillPlanner
from scheduler_proc.prefix_cache import PrefixMatch
from scheduler_proc.request import Request

WATERMARK_SHARE = 8
# Waiting requests that one plan leaves for the next because of what it computes; the queue behind them waits too.
MAX_PASSED_OVER = 256


class Starter:
    """Starts requests in the policy's order. masks: rows that may be under a grammar at once."""

    def __init__(self, lifecycle: Lifecycle, policy: Policy, prefills: PrefillPlanner, masks: int) -> None:
        self._lifecycle, self._policy, self._prefills = lifecycle, policy, prefills
        self._rows, self._kv, self._waiting = lifecycle.rows, lifecycle.kv, lifecycle.waiting
        self._masks = masks
        # A request that did not fit, and what there was then: blocks that could be had, nodes of the prefix tree.
        self._blocked: tuple[Request, int, int] | None = None

    def start(self, writer: PlanWriter, flight: Flight, now_ns: int, before: Request | None = None) -> None:
        """Start waiting requests, in order, while tokens, rows, blocks and the plan's columns last.

        before: only those that may displace this running one.
        """
        later: list[Request] = []
        computing: list[tuple[int, bytes]] = []  # blocks of this very step for which somebody waits: place in the prefix, key
        while writer.num_tokens < flight.budget and self._rows.num_free and len(later) < MAX_PASSED_OVER:
            request = self._waiting.first()
            if request is None or not self._admits(request) or self._still_blocked(request):
                break
            if before is not None and not self._policy.displaces(request, before):
                break
            if is_behind(request.priority) and writer.num_tokens >= flight.budget_behind:
                break
            # What this very step computes is there for the next one: better than to compute it twice.
            if self._lacks_mask(request) or self._kv.needs_any(request, computing):
                later.append(self._waiting.pop())
                continue
            match = self._kv.match(request, flight.step)
            if match.cut_at:
                computing.append((match.cut_at, request.keys[match.cut_at]))
                later.append(self._waiting.pop())
                continue
            if not self._start(request, match, writer, now_ns):
                break
            self._prefills.plan(request, writer, flight)
        for request in later:
            self._waiting.push(request)

    def displace(self, step: int) -> None:
        """Preempt running requests that must give way to the first waiting one, which lacks a row or blocks."""
        lifecycle, policy = self._lifecycle, self._policy
        while policy.displacing(lifecycle.num_behind) and lifecycle.num_running and (request := self._waiting.first()) is not None:
            victim = policy.victim(lifecycle.running())
            if not policy.displaces(request, victim) or not lifecycle.quarantine.admits(request, 0):
                return
            if self._lacks_mask(request):
                return  # what it lacks is not the victim's
            if self._rows.num_free and self._fits(request, self._kv.match(request, step)):
                return
            lifecycle.preempt(victim)

    def forget_blocked(self) -> None:
        """All blocks are new: what did not fit may fit."""
        self._blocked = None

    def _start(self, request: Request, match: PrefixMatch, writer: PlanWriter, now_ns: int) -> bool:
        """Give the first waiting request its row and blocks; False if blocks or the plan's columns do not suffice now."""
        if not self._fits(request, match):
            self._blocked = (request, self._kv.pool.num_available, len(self._kv.cache))
            return False
        num_known = len(request.tokens)
        num_blocks = self._kv.blocks_for(num_known)
        if not writer.takes(num_blocks, row_setup.size(request, num_known)):
            return False
        table = self._lifecycle.start(request, match, num_blocks, now_ns)
        writer.blocks(request.row, np.arange(num_blocks), table)
        writer.setup(row_setup.encode(request))
        return True

    def _admits(self, request: Request) -> bool:
        """Whether the request may run beside those that run."""
        return self._lifecycle.quarantine.admits(request, self._lifecycle.num_running)

    def _lacks_mask(self, request: Request) -> bool:
        return request.constraint is not None and self._lifecycle.num_constrained >= self._masks

    def _fits(self, request: Request, match: PrefixMatch) -> bool:
        """Whether there are blocks for it; some stay for the growth of running rows, or it would soon be preempted for them."""
        spare = min(self._lifecycle.num_running, self._kv.pool.num_blocks // WATERMARK_SHARE)
        return self._kv.fits(match, self._kv.blocks_for(len(request.tokens)), spare)

    def _still_blocked(self, request: Request) -> bool:
        """Whether nothing got better since this request did not fit: then looking up its prefix again is wasted."""
        blocked = self._blocked
        if blocked is None or blocked[0] is not request:
            return False
        return self._kv.pool.num_available <= blocked[1] and len(self._kv.cache) == blocked[2]
