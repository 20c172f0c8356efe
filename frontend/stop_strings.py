"""Finds stop strings in text that arrives in pieces, and holds back no more than what may become one."""

from __future__ import annotations

import re
from copy import copy
from typing import Protocol

from frontend.regex_automaton import compiled
from frontend.stop_regex import RegexMatcher
from ipc.sampling_params import SamplingParams


class Stops(Protocol):
    """What ends a text. matched: the stop string or pattern that has ended it."""

    @property
    def matched(self) -> str | None: ...
    def copy(self) -> Stops: ...
    def feed(self, text: str) -> str: ...
    def finish(self) -> str: ...


def stops_of(params: SamplingParams) -> Stops | None:
    """What ends a request's text; None if nothing in it does."""
    include = params.include_stop_str_in_output
    strings = StopMatcher(params.stop, include) if params.stop else None
    patterns = RegexMatcher(params.stop_regex, compiled(params.stop_regex), include) if params.stop_regex else None
    return strings if patterns is None else patterns if strings is None else _Both(strings, patterns)


class StopMatcher:
    """Knuth-Morris-Pratt over several patterns at once, fed piece by piece.

    The match that ends first wins; of two that end together, the longer one. So the outcome does not depend on how the text is cut.
    Cost: a few steps per character and pattern, whatever the patterns' lengths.
    """

    __slots__ = ("_failures", "_first", "_held", "_include", "_patterns", "_states", "matched")

    def __init__(self, patterns: list[str], include: bool) -> None:
        """patterns: non-empty strings. include: whether a match stays in the text."""
        self._patterns = patterns
        self._failures = [_failure(pattern) for pattern in patterns]
        self._states = [0] * len(patterns)
        self._first = re.compile("[" + re.escape("".join({pattern[0] for pattern in patterns})) + "]")
        self._held = ""
        self._include = include
        self.matched: str | None = None

    def copy(self) -> StopMatcher:
        """One that has read the same text and goes its own way from here."""
        twin = copy(self)
        twin._states = self._states.copy()
        return twin

    def feed(self, text: str) -> str:
        """Text that can go out now. When `matched` is set afterwards, it is the last."""
        if not self._held and self._first.search(text) is None:
            return text
        buffer = self._held + text
        for place in range(len(self._held), len(buffer)):
            longest = self._step(buffer[place])
            if longest is not None:
                self.matched = longest
                self._held = ""
                end = place + 1
                return buffer[: end if self._include else end - len(longest)]
        keep = len(buffer) - max(self._states)
        self._held = buffer[keep:]
        return buffer[:keep]

    def finish(self) -> str:
        """What was held back, if the text ends without a match."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        """Advance every pattern by one character; the longest that is complete now."""
        longest: str | None = None
        for place, pattern in enumerate(self._patterns):
            state, failure = self._states[place], self._failures[place]
            while state and pattern[state] != character:
                state = failure[state - 1]
            if pattern[state] == character:
                state += 1
            if state == len(pattern):
                if longest is None or len(pattern) > len(longest):
                    longest = pattern
                state = failure[state - 1]
            self._states[place] = state
        return longest


def _failure(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix as well."""
    table = [0] * len(pattern)
    length = 0
    for place in range(1, len(pattern)):
        while length and pattern[place] != pattern[length]:
            length = table[length - 1]
        if pattern[place] == pattern[length]:
            length += 1
        table[place] = length
    return table


class _Both:
    """Patterns are looked for in what stop strings let through."""

    __slots__ = ("_patterns", "_strings")

    def __init__(self, strings: StopMatcher, patterns: RegexMatcher) -> None:
        self._strings, self._patterns = strings, patterns

    @property
    def matched(self) -> str | None:
        """A pattern that ends in the text before a stop string ends it there."""
        return self._patterns.matched or self._strings.matched

    def copy(self) -> _Both:
        return _Both(self._strings.copy(), self._patterns.copy())

    def feed(self, text: str) -> str:
        out = self._patterns.feed(self._strings.feed(text))
        ends = self._strings.matched is not None and self._patterns.matched is None
        return out + self._patterns.finish() if ends else out

    def finish(self) -> str:
        out = self._patterns.feed(self._strings.finish())
        return out if self._patterns.matched is not None else out + self._patterns.finish()
