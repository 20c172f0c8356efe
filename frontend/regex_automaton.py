"""Regular expressions as automata without backtracking, for patterns that come from anybody.

An automaton of positions (Glushkov, "The abstract theory of automata", 1961): a position is one place of the pattern where a character is
read. Reading a character moves a set of positions, so the cost per character is bounded by the number of positions, whatever the pattern.
Repeats are written out; the number of positions is limited, and so is the work of making them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import or_
from typing import NamedTuple

MAX_PATTERN_CHARS = 1024
MAX_POSITIONS = 64  # of all patterns of a request together; where all of them are active, a character costs some 20 us
MAX_PARTS = 512
MAX_DEPTH = 32
_MAX_KNOWN = 1024
_CLASSES = {letter: re.compile("\\" + letter) for letter in "dDwWsS"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_CODES = {"x": 2, "u": 4, "U": 8}
_REPEAT = re.compile(r"\{(\d*)(,?)(\d*)\}")


class RegexError(ValueError):
    """A pattern that cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class _Characters:
    """A set of characters. classes: letters of \\d and its like."""

    singles: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()
    negated: bool = False
    ignores_case: bool = False

    def has(self, character: str) -> bool:
        forms = {character, character.lower(), character.upper()} if self.ignores_case else (character,)
        return any(len(form) == 1 and self._lists(form) for form in forms) != self.negated

    def _lists(self, character: str) -> bool:
        return (
            character in self.singles
            or any(low <= character <= high for low, high in self.ranges)
            or any(_CLASSES[name].match(character) is not None for name in self.classes)
        )


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: list[_Node]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: list[_Node]


@dataclass(frozen=True, slots=True)
class _Repeat:
    """most: None is without end."""

    part: _Node
    least: int
    most: int | None


_Node = _Characters | _Sequence | _Choice | _Repeat


class _Parser:
    """Python's syntax, less what needs more than an automaton or the text around a match."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0
        flags = re.match(r"\(\?([is]+)\)", pattern)
        self._ignores_case = flags is not None and "i" in flags[1]
        self._dot_is_all = flags is not None and "s" in flags[1]
        self._at = flags.end() if flags is not None else 0

    def parse(self) -> _Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise self._wrong("unbalanced parenthesis")
        return node

    def _wrong(self, what: str) -> RegexError:
        return RegexError(f"{what} at position {self._at}")

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(parts)

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._next() not in ("", "|", ")"):
            atom = self._atom()
            bounds = self._bounds()
            if bounds is not None:
                atom = _Repeat(atom, *bounds)
                self._take("?")  # fewest first or most first: the same texts match
                if self._next() == "+" or self._bounds() is not None:
                    raise self._wrong("a repeat of a repeat, or a possessive one, is not supported")
            parts.append(atom)
        return parts[0] if len(parts) == 1 else _Sequence(parts)

    def _bounds(self) -> tuple[int, int | None] | None:
        """Of the repeat that stands here, if one does."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = _REPEAT.match(self._pattern, self._at)
        if found is None or found[0] == "{}":
            return None
        self._at = found.end()
        low, comma, high = found.groups()
        if max(len(low), len(high)) > 6:
            raise self._wrong("a repeat of more than 999999 times")
        least = int(low or 0)
        most = int(high) if high else None if comma else least
        if most is not None and most < least:
            raise self._wrong("a repeat whose largest number is less than its smallest")
        return least, most

    def _atom(self) -> _Node:
        character = self._next()
        if character in "^$":
            raise self._wrong(f"{character} is not supported: a stream has no lines to be at the edge of")
        if character in "*+?":
            raise self._wrong("nothing to repeat")
        self._at += 1
        match character:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _Characters(frozenset() if self._dot_is_all else frozenset("\n"), negated=True)
            case "\\":
                return self._set(self._escape(False))
            case _:
                return self._set(character)

    def _set(self, one: str) -> _Characters:
        """A character, or a class as \\d."""
        if len(one) == 2:
            return _Characters(classes=(one[1],))
        return _Characters(frozenset(one), ignores_case=self._ignores_case)

    def _group(self) -> _Node:
        if self._take("?:"):
            pass
        elif found := re.compile(r"\?P<[A-Za-z_]\w*>").match(self._pattern, self._at):
            self._at = found.end()
        elif self._next() == "?":
            raise self._wrong("look-around, back references and flags inside of a pattern are not supported")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"groups may be nested {MAX_DEPTH} deep, not more,")
        node = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise self._wrong("missing )")
        return node

    def _class(self) -> _Characters:
        negated = self._take("^")
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        classes: list[str] = []
        first = True
        while first or self._next() != "]":
            first = False
            low = self._member()
            if len(low) == 2:
                classes.append(low[1])
            elif self._next() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member()
                if len(high) == 2 or high < low:
                    raise self._wrong("a bad range of characters")
                ranges.append((low, high))
            else:
                singles.add(low)
        self._at += 1
        return _Characters(frozenset(singles), tuple(ranges), tuple(classes), negated, self._ignores_case)

    def _member(self) -> str:
        character = self._next()
        if not character:
            raise self._wrong("missing ]")
        self._at += 1
        return self._escape(True) if character == "\\" else character

    def _escape(self, in_class: bool) -> str:
        """After a backslash: the character that is meant, or a class with its backslash."""
        letter = self._next()
        self._at += 1
        if letter in _CLASSES:
            return "\\" + letter
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "b" and in_class:
            return "\b"
        if letter in _CODES:
            digits = self._pattern[self._at : self._at + _CODES[letter]]
            if len(digits) < _CODES[letter] or not re.fullmatch("[0-9A-Fa-f]+", digits) or int(digits, 16) > 0x10FFFF:
                raise self._wrong("a bad code of a character")
            self._at += _CODES[letter]
            return chr(int(digits, 16))
        if not letter:
            raise self._wrong("a backslash at the end")
        if letter.isascii() and letter.isalnum():
            raise self._wrong(f"\\{letter} is not supported")
        return letter


class _Built(NamedTuple):
    """Of a part: whether it matches nothing; the positions it may begin and end with, a bit each."""

    empty: bool
    first: int
    last: int


_NOTHING = _Built(True, 0, 0)


@dataclass(slots=True)
class Automaton:
    """Several patterns at once; sets of positions are integers, one bit each. Shared by all that match the same patterns.

    first: positions that a match may begin with. accepts: for each pattern, those that it may end with; ends: any of these.
    """

    first: int = 0
    ends: int = 0
    accepts: list[int] = field(default_factory=list)
    _sets: list[_Characters] = field(default_factory=list)
    _follow: dict[int, int] = field(default_factory=dict)  # by a position's bit, those that may come next
    _known: dict[str, int] = field(default_factory=dict)
    _known_after: dict[int, int] = field(default_factory=dict)
    _parts: int = 0

    def reading(self, character: str) -> int:
        """The positions that read this character."""
        found = self._known.get(character)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = sum(1 << place for place, each in enumerate(self._sets) if each.has(character))
            self._known[character] = found
        return found

    def after(self, positions: int) -> int:
        """The positions that may come after any of these."""
        found = self._known_after.get(positions)
        if found is None:
            if len(self._known_after) >= _MAX_KNOWN:
                self._known_after.clear()
            found, left = 0, positions
            while left:
                lowest = left & -left
                found |= self._follow[lowest]
                left ^= lowest
            self._known_after[positions] = found
        return found

    def add(self, pattern: str) -> None:
        """Raises RegexError."""
        if len(pattern) > MAX_PATTERN_CHARS:
            raise RegexError(f"it has more than {MAX_PATTERN_CHARS} characters")
        built = self._build(_Parser(pattern).parse())
        if built.empty:
            raise RegexError("it matches the empty text, so the output would end at once")
        self.first |= built.first
        self.accepts.append(built.last)
        self.ends |= built.last

    def _build(self, node: _Node) -> _Built:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise RegexError("it is too large when its repeats are written out")
        match node:
            case _Characters():
                return self._position(node)
            case _Sequence():
                built = _NOTHING
                for part in node.parts:
                    built = self._then(built, self._build(part))
                return built
            case _Choice():
                parts = [self._build(part) for part in node.parts]
                return _Built(any(part.empty for part in parts), _union(part.first for part in parts), _union(part.last for part in parts))
            case _Repeat():
                return self._repeat(node)

    def _position(self, characters: _Characters) -> _Built:
        if len(self._sets) == MAX_POSITIONS:
            raise RegexError(f"the patterns read more than {MAX_POSITIONS} characters when their repeats are written out")
        bit = 1 << len(self._sets)
        self._sets.append(characters)
        self._follow[bit] = 0
        return _Built(False, bit, bit)

    def _then(self, one: _Built, other: _Built) -> _Built:
        self._link(one.last, other.first)
        return _Built(
            one.empty and other.empty,
            one.first | (other.first if one.empty else 0),
            other.last | (one.last if other.empty else 0),
        )

    def _repeat(self, node: _Repeat) -> _Built:
        built = _NOTHING
        endless = node.most is None
        for number in range(max(node.least, 1) if endless else node.most or 0):
            part = self._build(node.part)
            if number >= node.least:
                part = part._replace(empty=True)
            built = self._then(built, part)
        if endless:
            self._link(part.last, part.first)
        return built

    def _link(self, before: int, after: int) -> None:
        while before:
            lowest = before & -before
            self._follow[lowest] |= after
            before ^= lowest


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


@lru_cache(maxsize=256)
def _automaton(patterns: tuple[str, ...]) -> Automaton:
    made = Automaton()
    for pattern in patterns:
        try:
            made.add(pattern)
        except RegexError as error:
            raise RegexError(f"{pattern!r:.80}: {error}") from None
    return made


def compiled(patterns: Sequence[str]) -> Automaton:
    """The automaton of several patterns. Raises RegexError naming the pattern."""
    return _automaton(tuple(patterns))
