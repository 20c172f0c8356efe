"""A place in text that is still being written.

Parsers are generators that read through a cursor and yield when they need text that is not there yet. They see characters and never
pieces, so how the text was cut cannot change what they do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")
Parse = Generator[None, None, T]

MAX_HELD = 64 * 1024


class NotACall(Exception):
    """What looked like a tool call is none: its text is content. Raised before anything of the call has been given out."""


class Cursor:
    """text[at:] is what comes next; `ended`: nothing will be added. Text from `mark` on is kept, so that a parser may go back to it."""

    __slots__ = ("at", "ended", "mark", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.mark = -1
        self.ended = False

    def add(self, text: str) -> None:
        """The next piece. Forgets what lies behind."""
        keep = self.at if self.mark < 0 else self.mark
        self.text = self.text[keep:] + text
        self.at -= keep
        if self.mark > 0:
            self.mark = 0

    def need(self, count: int) -> Parse[bool]:
        """Whether `count` more characters are there, after waiting for as long as they may still come.

        Raises NotACall when more than MAX_HELD characters would have to be kept since `mark`.
        """
        if self.mark >= 0 and self.at - self.mark > MAX_HELD:
            raise NotACall
        while len(self.text) - self.at < count:
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Parse[str]:
        """The next character, '' at the end."""
        return self.text[self.at] if (yield from self.need(1)) else ""

    def char(self) -> Parse[str]:
        """The next character, '' at the end; moves past it."""
        if not (yield from self.need(1)):
            return ""
        self.at += 1
        return self.text[self.at - 1]

    def skip_space(self) -> Parse[None]:
        while (yield from self.need(1)) and self.text[self.at].isspace():
            self.at += 1

    def match(self, markers: Sequence[str]) -> Parse[str]:
        """The longest of `markers` that stands here, and moves past it; '' if none does."""
        best, count, alive = "", 0, list(markers)
        while alive:
            count += 1
            if not (yield from self.need(count)):
                break
            seen = self.text[self.at : self.at + count]
            alive = [marker for marker in alive if marker.startswith(seen)]
            if seen in alive:
                best = seen
                alive.remove(seen)
        self.at += len(best)
        return best

    def until(self, stops: Sequence[str], emit: Callable[[str], None]) -> Parse[str]:
        """Give out text up to the first of `stops` and move past that; returns it, or '' if the text ended. Holds back what may be one."""
        first = _first_characters(tuple(stops))
        while (yield from self.need(1)):
            found = first.search(self.text, self.at)
            place = found.start() if found is not None else len(self.text)
            if place > self.at:
                start, self.at = self.at, place
                emit(self.text[start:place])
                continue
            stop = yield from self.match(stops)
            if stop:
                return stop
            self.at += 1
            emit(self.text[self.at - 1])
        return ""

    def read_until(self, stops: Sequence[str], limit: int = MAX_HELD) -> Parse[tuple[str, str]]:
        """(text, stop): text up to the first of `stops`. Raises NotACall if the text ends first or is longer than `limit`."""
        parts: list[str] = []
        size = 0

        def keep(text: str) -> None:
            nonlocal size
            size += len(text)
            if size > limit:
                raise NotACall
            parts.append(text)

        stop = yield from self.until(stops, keep)
        if not stop:
            raise NotACall
        return "".join(parts), stop

    def name(self) -> Parse[str]:
        """A function's name: letters, digits and _ . - ; may be empty."""
        found = ""
        while len(found) <= 256 and (yield from self.need(1)) and (self.text[self.at].isalnum() or self.text[self.at] in "_.-"):
            found += self.text[self.at]
            self.at += 1
        return found

    def expect(self, marker: str) -> Parse[None]:
        """Move past `marker`. Raises NotACall if something else stands here."""
        if marker and not (yield from self.match((marker,))):
            raise NotACall


@cache
def _first_characters(stops: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("[" + re.escape("".join(sorted({stop[0] for stop in stops}))) + "]") if stops else re.compile(r"(?!)")
