"""Finds where text that arrives in pieces first matches a pattern, and holds back no more than what may become a match."""

from __future__ import annotations

from copy import copy

from frontend.regex_automaton import Automaton


class RegexMatcher:
    """Fed piece by piece, as StopMatcher. The match that ends first wins; of those that end together, that which began first.

    So the outcome does not depend on how the text is cut, and a pattern that ends in a repeat ends at its shortest. Cost per character: a
    few steps for each position of the patterns that is active.
    """

    __slots__ = ("_active", "_automaton", "_base", "_end", "_held", "_include", "_patterns", "matched")

    def __init__(self, patterns: list[str], automaton: Automaton, include: bool) -> None:
        """automaton: of the patterns. include: whether a match stays in the text."""
        self._patterns, self._automaton, self._include = patterns, automaton, include
        self._held: list[str] = []
        self._base = self._end = 0  # characters before what is held, and with it
        # Where matches that may still end began, earliest first, and the positions they are at; no position is in two of them.
        self._active: list[tuple[int, int]] = []
        self.matched: str | None = None

    def copy(self) -> RegexMatcher:
        """One that has read the same text and goes its own way from here."""
        twin = copy(self)
        twin._held, twin._active = self._held.copy(), self._active.copy()
        return twin

    def feed(self, text: str) -> str:
        """Text that can go out now. When `matched` is set afterwards, it is the last."""
        self._held.append(text)
        for character in text:
            start = self._read(character)
            self._end += 1
            if start is not None:
                return "".join(self._held)[: (self._end if self._include else start) - self._base]
        kept_from = self._active[0][0] if self._active else self._end
        if kept_from == self._base:
            return ""
        whole = "".join(self._held)
        cut = kept_from - self._base
        self._held, self._base = [whole[cut:]], kept_from
        return whole[:cut]

    def finish(self) -> str:
        """What was held back, if the text ends without a match."""
        held, self._held = "".join(self._held), []
        return held

    def _read(self, character: str) -> int | None:
        """Move every match on by one character; where that began which is complete now."""
        automaton = self._automaton
        reads = automaton.reading(character)
        before, self._active = self._active, []
        if not before and not reads & automaton.first:
            return None
        active, after, ends = self._active, automaton.after, automaton.ends
        for start, positions in before:
            reached = after(positions) & reads
            if reached:
                if reached & ends:
                    return self._matches(start, reached)
                reads ^= reached  # whoever comes to a position later has no match that ends earlier
                active.append((start, reached))
        reached = automaton.first & reads
        if reached & ends:
            return self._matches(self._end, reached)
        if reached:
            active.append((self._end, reached))
        return None

    def _matches(self, start: int, reached: int) -> int:
        self.matched = next(pattern for pattern, accepts in zip(self._patterns, self._automaton.accepts) if reached & accepts)
        return start
