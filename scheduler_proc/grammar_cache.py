"""Compiled grammars by content, least recently used first out, bounded in bytes; and, for a while, what is wrong with the bad ones."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

import msgspec

from ipc.grammar import Grammar

Compiled = TypeVar("Compiled")

# Measured with llguidance 1.9: a grammar takes this much by itself, and 30 to 100 bytes for each character of its text.
BASE_BYTES = 128 * 1024
BYTES_PER_CHAR = 100
MAX_ERRORS = 1024
# A grammar that took too long may have been unlucky: it is tried again after this many seconds.
PASSING_SECONDS = 60.0


def key_of(grammar: Grammar) -> bytes:
    """A name for the content: equal for equal grammars, whoever sends them."""
    return hashlib.blake2b(msgspec.msgpack.encode(grammar.key), digest_size=24).digest()


def estimated_bytes(text: str) -> int:
    """Memory of a compiled grammar, by the length of its text."""
    return BASE_BYTES + BYTES_PER_CHAR * len(text)


class GrammarCache(Generic[Compiled]):
    """max_bytes: of all compiled grammars together, as estimated. One that is larger than that alone is not kept. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Compiled, int]] = OrderedDict()
        self._errors: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self.num_bytes = 0
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Compiled | None:
        """The compiled grammar, which is the most recently used one now."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, compiled: Compiled, size: int) -> None:
        """Keep it, and drop the least recently used ones that it leaves no room for."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.num_bytes -= old[1]
        if size > self._max_bytes:
            return
        self._entries[key] = (compiled, size)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.num_bytes -= dropped

    def error(self, key: bytes, now: float) -> str | None:
        """What is known to be wrong with the grammar at `now` (seconds)."""
        message, until = self._errors.get(key, (None, 0.0))
        return message if now < until else None

    def put_error(self, key: bytes, message: str, now: float, passing: bool) -> None:
        """Remember that the grammar cannot be used."""
        self._errors.pop(key, None)
        self._errors[key] = (message, now + PASSING_SECONDS if passing else float("inf"))
        if len(self._errors) > MAX_ERRORS:
            self._errors.popitem(last=False)
