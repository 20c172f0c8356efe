"""Who runs first and who has to go: the order of the queue and the choice of a victim."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Literal

from ipc.messages import BEHIND_CLIENTS
from scheduler_proc.request import Request, Status

PolicyName = Literal["fcfs", "priority"]


def is_behind(priority: int) -> bool:
    """Whether it is the priority of a request that no client waits for: it gives way to all others."""
    return priority >= BEHIND_CLIENTS // 2


class Policy:
    """fcfs: by arrival. priority: a lower number first, then by arrival. What no client waits for comes last under both, and gives way."""

    def __init__(self, name: PolicyName) -> None:
        self._by_priority = name == "priority"

    def order(self, priority: int, arrival_ns: int, number: int) -> tuple[int, int, int]:
        """Sort key of a request; a preempted one keeps it and so comes before all that arrived later."""
        if not self._by_priority:
            priority = int(is_behind(priority))
        return (priority, arrival_ns, number)

    def displacing(self, num_behind: int) -> bool:
        """Whether a waiting request may take the place of a running one. num_behind: running requests that no client waits for."""
        return self._by_priority or num_behind > 0

    def victim(self, running: Iterable[Request]) -> Request:
        """Who loses its blocks when they run out."""
        return max(running, key=lambda request: request.order)

    def displaces(self, waiting: Request, running: Request) -> bool:
        """Whether the one may take the place of the other."""
        return waiting.order[0] < running.order[0]


class WaitingQueue:
    """Requests without a row, in the policy's order."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], Request]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.order, request))
        self._count += 1

    def first(self) -> Request | None:
        """The next request, still in the queue."""
        while self._heap and self._heap[0][1].status is Status.FINISHED:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Take the next request out. Raises IndexError if there is none."""
        if self.first() is None:
            raise IndexError("nothing waits")
        self._count -= 1
        return heapq.heappop(self._heap)[1]

    def forget_finished(self) -> None:
        """Count one request less, which has become FINISHED in the queue; its entry goes when it surfaces or when half are such."""
        self._count -= 1
        if len(self._heap) > 2 * self._count + 64:
            self._heap = [entry for entry in self._heap if entry[1].status is not Status.FINISHED]
            heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._heap if request.status is not Status.FINISHED)
