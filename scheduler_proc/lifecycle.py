"""A request's way from acceptance to its end: waiting or held, in a row, preempted, finished.

Every change of `Request.status` is made here, and with it what goes along: the row, the blocks, the pins and the counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from ipc.arena import I32
from ipc.messages import FinishReason
from scheduler_proc.emissions import Emitter
from scheduler_proc.flight import Flights
from scheduler_proc.kv_manager import KVManager
from scheduler_proc.metrics import Counters
from scheduler_proc.policy import WaitingQueue, is_behind
from scheduler_proc.prefix_cache import PrefixMatch
from scheduler_proc.recovery import Quarantine
from scheduler_proc.request import Ending, Request, Status
from scheduler_proc.rows import Rows
from scheduler_proc.stop_table import StopTable

NOT_FINITE = "the model produced non-finite logits"


class Lifecycle:
    """Where every request is.

    waiting: requests without a row that could start; held: those that wait on something first (`Request.waiting_on`). prefilling: requests
    in a row whose known tokens are not all planned yet, in the policy's order. num_constrained: rows under a grammar. num_behind: rows of
    requests that no client waits for.
    """

    def __init__(self, rows: Rows, kv: KVManager, flights: Flights, emitter: Emitter, vocab_size: int) -> None:
        self.rows, self.kv = rows, kv
        self.waiting = WaitingQueue()
        self.held: dict[Request, None] = {}
        self.prefilling: list[Request] = []
        self.num_constrained = 0
        self.num_behind = 0
        self.stops = StopTable(vocab_size)
        self.quarantine = Quarantine()
        self.counters = Counters()
        self._flights = flights
        self._emitter = emitter

    @property
    def num_running(self) -> int:
        return self.rows.num_rows - self.rows.num_free

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.held)

    def running(self) -> Iterator[Request]:
        return (request for request in self.rows.requests if request is not None)

    def without_row(self) -> list[Request]:
        """Waiting and held requests."""
        return [*self.waiting, *self.held]

    # Towards a row

    def take(self, request: Request) -> None:
        """A new request, which waits from now on."""
        request.frontend.requests[request.handle] = request
        request.frontend.request_ids.add(request.request_id)
        self.stops.add(request.stop_set)
        self.wait(request)
        self.counters.arrived(request)

    def wait(self, request: Request) -> None:
        """Into the queue, or beside it while the request could not start if it were first; one that has outgrown all blocks ends here."""
        if request.waiting_on:
            self.held[request] = None
        else:
            self.waiting.push(request)
        if self.kv.blocks_for(len(request.tokens)) > self.kv.pool.num_blocks:
            self.finish(request, Ending(FinishReason.LENGTH))

    def resume(self, request: Request) -> None:
        """A held request waits on nothing any more."""
        del self.held[request]
        self.wait(request)

    def start(self, request: Request, match: PrefixMatch, num_blocks: int, now_ns: int) -> I32:
        """Give the first waiting request a row and so many blocks, which must fit; its block table."""
        num_cached = len(match.blocks) * self.kv.block_size
        row = self.rows.occupy(request, num_cached, num_blocks, self.kv.block_size)
        table = self.rows.block_table[row, :num_blocks]
        self.kv.start(request, match, table)
        self.waiting.pop()
        request.become(Status.RUNNING)
        bisect.insort(self.prefilling, request, key=_order)
        self.num_constrained += request.constraint is not None
        self.num_behind += is_behind(request.priority)
        self.quarantine.started(request)
        starts_first = not request.first_planned_ns
        self.counters.admitted(request, num_cached, now_ns)
        if starts_first:
            self._emitter.started(request, min(num_cached, request.num_prompt))
        return table

    # Out of it

    def preempt(self, request: Request) -> None:
        """Take row and blocks; it waits again, before all that come after it in the policy's order."""
        self._leave_row(request, keep=True)
        request.become(Status.PREEMPTED)
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self.wait(request)

    def finish(self, request: Request, ending: Ending | None, keep: bool = True) -> None:
        """End a request and tell of it, unless there is no `ending` to tell. keep: others may go on reading its blocks."""
        running = request.status is Status.RUNNING
        if running:
            self._leave_row(request, keep)
        request.become(Status.FINISHED)
        if request in self.held:
            del self.held[request]
        elif not running:
            self.waiting.forget_finished()
        del request.frontend.requests[request.handle]
        request.frontend.request_ids.discard(request.request_id)
        self.stops.remove(request.stop_set)
        self.quarantine.ended(request)
        if ending is not None:
            self._emitter.finished(request, ending, len(request.tokens))

    def fail(self, request: Request) -> None:
        """The request's numbers are wrong: nobody may read its blocks."""
        self.finish(request, Ending(FinishReason.ERROR, error=NOT_FINITE), keep=False)

    def _leave_row(self, request: Request, keep: bool) -> None:
        """Row and blocks become free; keep: others may go on reading what was computed for it."""
        columns, row = self.rows, request.row
        table = columns.block_table[row, : columns.capacity[row] // self.kv.block_size]
        if keep:
            # Scheduled is enough: workers run steps in order, so it is computed before anybody reads it.
            valid = int(min(columns.num_known[row], columns.num_scheduled[row]))
            self.kv.finish(request, table, columns.tokens(row), valid)
        else:
            self.kv.discard(request, table)
        if not columns.decoding[row] and request in self.prefilling:
            self.prefilling.remove(request)
        self.num_behind -= is_behind(request.priority)
        if request.constraint is not None:
            self.num_constrained -= 1
            self._flights.forget(request.constraint)
        columns.free(row)

    # When the workers' memory is lost

    def lose_workers(self) -> None:
        """All that the workers computed is gone: every running request waits again, to be computed from its known tokens.

        Those that were in flight at too many such losses are failed.
        """
        doomed = self.quarantine.workers_died(self._flights.requests(self.rows))
        self._flights.clear()
        self.prefilling.clear()
        self.num_constrained = self.num_behind = 0
        for request in list(self.running()):
            self.rows.free(request.row)
            request.become(Status.PREEMPTED)
            self.wait(request)
        self.reset_blocks(self.kv.pool.num_blocks)
        for request in doomed:
            self.finish(request, Ending(FinishReason.ERROR, error=self.quarantine.MESSAGE))

    def reset_blocks(self, num_blocks: int) -> None:
        """Start with empty blocks. Only while no request runs."""
        self.counters.evicted_before += self.kv.cache.num_evicted
        self.kv.reset(num_blocks)
        for request in self.without_row():
            request.node, request.path_len, request.path_open = None, 0, False


def _order(request: Request) -> tuple[int, int, int]:
    return request.order
