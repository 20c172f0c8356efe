"""What the next step computes: decode rows first, then prompts that are being computed, then requests that start.

All of them stand under one token budget (continuous batching: Orca, OSDI 2022; chunked prefill: Sarathi-Serve, OSDI 2024), which is as
large as the time that a step may take allows (step_time.py).
"""

from __future__ import annotations

import numpy as np

from ipc.arena import Dimensions
from ipc.config import SchedulerConfig
from ipc.messages import FinishReason
from scheduler_proc.flight import DecodeSet, Flight
from scheduler_proc.lifecycle import Lifecycle
from scheduler_proc.plan_writer import PlanWriter
from scheduler_proc.policy import Policy
from scheduler_proc.prefill import PrefillPlanner
from scheduler_proc.request import Ending
from scheduler_proc.starter import Starter
from scheduler_proc.step_time import StepTime

# Prompts that no client waits for get this share of a step's time: who comes meanwhile waits for up to two steps that are under way.
BEHIND_SHARE = 0.25


class Planner:
    """Makes one step's plan at a time, and moves requests into rows, and out of them when blocks run out."""

    def __init__(self, lifecycle: Lifecycle, policy: Policy, settings: SchedulerConfig, dimensions: Dimensions) -> None:
        self._lifecycle, self._policy = lifecycle, policy
        self._rows, self._kv = lifecycle.rows, lifecycle.kv
        self._budget = settings.max_num_batched_tokens
        self.step_time = StepTime(settings.target_step_ms / 1e3)
        self._prefills = PrefillPlanner(self._rows, self._kv, self._budget, dimensions.vectors)
        self.starter = Starter(lifecycle, policy, self._prefills, dimensions.masks)
        # Of the rows' version that it names.
        self.decodes = DecodeSet.of(self._rows)

    def plan(self, now_ns: int, writer: PlanWriter, flight: Flight) -> None:
        """Give `writer` the rows of the flight's step, and the flight what is to be remembered of them; no rows: there is nothing to do."""
        lifecycle = self._lifecycle
        if len(lifecycle.waiting):
            self.starter.displace(flight.step)
        preempted = lifecycle.counters.preemptions
        decodes = self._plan_decodes(writer)
        if decodes is not None:
            flight.decodes = decodes
            flight.bound += decodes.bound
            decodes.steps_left -= 1
            if not decodes.steps_left:
                self._retire(flight, decodes)
        if lifecycle.prefilling or len(lifecycle.waiting):
            num_decodes = writer.num_tokens
            most = self._budget - num_decodes
            flight.budget = num_decodes + self.step_time.tokens(num_decodes, most)
            flight.budget_behind = num_decodes + self.step_time.tokens(num_decodes, most, BEHIND_SHARE)
            # What was just preempted would take its blocks back at once.
            starting = preempted == lifecycle.counters.preemptions
            for request in tuple(lifecycle.prefilling):
                # Who may displace it does not wait for its prompt either.
                if starting and len(lifecycle.waiting):
                    self.starter.start(writer, flight, now_ns, before=request)
                self._prefills.plan(request, writer, flight)
            if starting and len(lifecycle.waiting):
                self.starter.start(writer, flight, now_ns)
            lifecycle.prefilling = [each for each in lifecycle.prefilling if self._rows.num_scheduled[each.row] < each.target]
        flight.num_rows, flight.num_tokens = writer.num_rows, writer.num_tokens

    def _plan_decodes(self, writer: PlanWriter) -> DecodeSet | None:
        """One more token for every decoding row, after making sure of its block; None if there is no such row."""
        columns, pool = self._rows, self._kv.pool
        while True:
            if self.decodes.version != columns.version:
                self.decodes = DecodeSet.of(columns)
            decodes = self.decodes
            rows = decodes.rows
            if not len(rows):
                return None
            starts = columns.num_scheduled[rows]
            full = starts == columns.capacity[rows]
            count = int(np.count_nonzero(full))
            if count <= pool.num_free or self._kv.make_free(count):
                break
            if not self._give_way():
                return None
        if count:
            growing, block_size = rows[full], self._kv.block_size
            index = starts[full] // block_size
            blocks = pool.take(count)
            columns.block_table[growing, index] = blocks
            columns.capacity[growing] += block_size
            writer.blocks(growing, index, blocks)
        writer.decodes(decodes.narrow, starts, decodes.flags)
        starts += 1
        columns.num_scheduled[rows] = starts
        return decodes

    def _give_way(self) -> bool:
        """Blocks have run out: preempt somebody. False: the one running request must wait for its own step in flight."""
        victim = self._policy.victim(self._lifecycle.running())
        if self._lifecycle.num_running > 1:
            self._lifecycle.preempt(victim)
            return True
        row = victim.row
        if self._rows.num_known[row] <= self._rows.num_scheduled[row]:
            return False
        self._lifecycle.finish(victim, Ending(FinishReason.LENGTH))
        return True

    def _retire(self, flight: Flight, decodes: DecodeSet) -> None:
        """Some rows got their last token planned: they decode no more."""
        rows = decodes.rows
        self._rows.set_decoding(rows[self._rows.num_scheduled[rows] >= self._rows.limit[rows]], False)
        flight.has_last = True
