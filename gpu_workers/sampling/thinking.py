"""Ends a row's reasoning when its budget is used up: the token that closes it then comes next, whatever the model would say.

What is known of a row follows from its tokens alone, so a row that is set up again, after a preemption or in another worker, goes on as
if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipc.sampling_params import ThinkingLimit


class Thoughts:
    """One row's reasoning so far. used: tokens between its markers, over the whole output."""

    __slots__ = ("_inside", "_limit", "used")

    def __init__(self, limit: ThinkingLimit, output: Iterable[int]) -> None:
        self._limit = limit
        self._inside = limit.opened
        self.used = 0
        for token in output:
            self.add(token)

    @property
    def forced(self) -> int | None:
        """The token that must come next, if one must."""
        return self._limit.end if self._inside and self.used >= self._limit.budget else None

    def add(self, token: int) -> None:
        """The next token of the output."""
        if token == self._limit.end:
            self._inside = False
        elif self._inside:
            self.used += 1
        elif token == self._limit.begin:
            self._inside = True
