"""The frontend process lives that the scheduler has heard from, and their requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler_proc.request import Request


class Frontend:
    """One frontend process life: its requests by handle. `number` stands for it in columns."""

    __slots__ = ("identity", "number", "request_ids", "requests")

    def __init__(self, identity: str, number: int) -> None:
        self.identity = identity
        self.number = number
        self.requests: dict[int, Request] = {}
        self.request_ids: set[str] = set()


class Frontends:
    """By identity and by number; a number is never given twice."""

    def __init__(self) -> None:
        self._by_identity: dict[str, Frontend] = {}
        self.by_number: dict[int, Frontend] = {}
        self._next = 0

    def known(self, identity: str) -> Frontend | None:
        return self._by_identity.get(identity)

    def of(self, identity: str) -> Frontend:
        """The frontend of this identity, which may be a new one."""
        frontend = self._by_identity.get(identity)
        if frontend is None:
            frontend = self._by_identity[identity] = self.by_number[self._next] = Frontend(identity, self._next)
            self._next += 1
        return frontend

    def remove(self, identity: str) -> Frontend | None:
        frontend = self._by_identity.pop(identity, None)
        if frontend is not None:
            del self.by_number[frontend.number]
        return frontend

    def __iter__(self) -> Iterator[Frontend]:
        return iter(self._by_identity.values())
