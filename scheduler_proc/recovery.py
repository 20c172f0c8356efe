"""Which requests are suspected of killing workers, and how they are run.

A request in flight at two worker deaths runs alone, so that its third death, if it comes, takes nobody along and proves the
cause.
"""

from __future__ import annotations

from scheduler_proc.request import Request
from scheduler_proc.rows import Rows

ALONE_AFTER = 2
FAIL_AFTER = 3
# The step at which the worker died is repeated by the first of these.
TOKENS_TO_CLEAR = 2
# Sorts before every priority.
FIRST = -(2**64)


class Quarantine:
    """Counts a request's deaths in `request.worker_deaths`; suspects go first and alone, until they got past the deadly step."""

    MESSAGE = f"the worker died {FAIL_AFTER} times while it computed this request"

    def __init__(self) -> None:
        self._suspects: set[Request] = set()
        self._alone: Request | None = None

    def workers_died(self, in_flight: list[Request]) -> list[Request]:
        """Count one more death of requests that are in no queue; those that must not be tried again."""
        self._alone = None
        for request in in_flight:
            request.worker_deaths += 1
            if request.worker_deaths >= ALONE_AFTER and request not in self._suspects:
                self._suspects.add(request)
                request.order = (FIRST, *request.order[1:])
        return [request for request in in_flight if request.worker_deaths >= FAIL_AFTER]

    def admits(self, request: Request, num_running: int) -> bool:
        """Whether the request may run beside those that run."""
        return self._alone is None and (request not in self._suspects or not num_running)

    def started(self, request: Request) -> None:
        if request in self._suspects:
            self._alone = request
            request.suspect_tokens = len(request.tokens) + TOKENS_TO_CLEAR

    def cleared(self, rows: Rows, order: tuple[int, int, int]) -> bool:
        """Whether the one that runs alone has just shown that it is harmless; it is an ordinary request of this order then."""
        request = self._alone
        if request is None or request.row < 0 or rows.num_known[request.row] < request.suspect_tokens:
            return False
        request.worker_deaths = 0
        request.order = order
        self.ended(request)
        return True

    def ended(self, request: Request) -> None:
        """It is finished, or no suspect any more."""
        self._suspects.discard(request)
        if self._alone is request:
            self._alone = None

    @property
    def alone(self) -> Request | None:
        """Who runs alone now."""
        return self._alone

    @property
    def any_left(self) -> bool:
        """Whether there is still somebody to be tried alone."""
        return bool(self._suspects)
