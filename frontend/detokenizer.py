"""Token ids to text, one at a time, without splitting a character.

Byte-level vocabularies (GPT-2's scheme: most models) have a table of each token's bytes and an incremental UTF-8 decoder: the concatenation
of what is given out equals the tokenizer's own decoding of all ids. Other vocabularies decode a short window of ids twice, with and without
the new ones (the method of Hugging Face's text-generation-inference), and give out the difference.
"""

from __future__ import annotations

import codecs
import json
from copy import copy
from typing import Protocol

from tokenizers import Tokenizer as Backend

REPLACEMENT = "\ufffd"
# A character has at most four bytes, so a longer run of undecodable tokens is no character; it is kept to its end all the same, since some
# decoders judge a run of bytes as a whole. This bounds what one step may decode.
MAX_HELD_TOKENS = 64
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """One request's output. `pending`: bytes of an unfinished character, or held tokens, are inside."""

    pending: bool

    def feed(self, token: int) -> str:
        """Text that the next token completes, possibly empty."""

    def finish(self) -> str:
        """What is left; an unfinished character becomes U+FFFD."""

    def copy(self) -> Detokenizer:
        """One that has read the same tokens and goes its own way from here."""


class TokenBytes(dict[int, bytes]):
    """Token id to the bytes it stands for, filled as tokens come; unknown ids and, if so wanted, special tokens are empty."""

    def __init__(self, backend: Backend, special: frozenset[int], skip_special: bool) -> None:
        super().__init__()
        self._backend = backend
        self._skipped = special if skip_special else frozenset()
        self._byte_of = _byte_of_character()

    def __missing__(self, token: int) -> bytes:
        piece = None if token in self._skipped or token < 0 else self._backend.id_to_token(token)
        if piece is None:
            found = b""
        else:
            try:
                found = bytes(self._byte_of[character] for character in piece)
            except KeyError:  # an added token with characters outside of the scheme stands for itself
                found = piece.encode("utf-8", "replace")
        self[token] = found
        return found


class TokenJson(dict[int, "bytes | None"]):
    """Token id to its text as the inside of a JSON string, UTF-8; None where the token alone is not whole characters."""

    def __init__(self, table: TokenBytes) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, token: int) -> bytes | None:
        try:
            escaped: bytes | None = json_inside(self._table[token].decode("utf-8"))
        except UnicodeDecodeError:
            escaped = None
        self[token] = escaped
        return escaped


class ByteDetokenizer:
    """For byte-level vocabularies."""

    __slots__ = ("_decoder", "_table", "pending")

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._decoder = _utf8_decoder("replace")
        self.pending = False

    def feed(self, token: int) -> str:
        text = self._decoder.decode(self._table[token])
        self.pending = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        self.pending = False
        return self._decoder.decode(b"", True)

    def copy(self) -> ByteDetokenizer:
        twin = ByteDetokenizer(self._table)
        twin._decoder.setstate(self._decoder.getstate())
        twin.pending = self.pending
        return twin


class WindowDetokenizer:
    """For every other vocabulary: metaspace, byte fallback, word pieces.

    Equal to the tokenizer's decoding but for one case: byte fallback judges a run of byte tokens as a whole, so a broken byte turns
    characters before it in the run, which may be out already, into replacement characters.
    """

    __slots__ = ("_backend", "_given", "_ids", "_prefix", "_read", "_skip_special", "pending")

    def __init__(self, backend: Backend, skip_special: bool) -> None:
        self._backend = backend
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._prefix = 0  # the window begins here
        self._read = 0  # text up to here has been given out
        self._given: list[str] = []
        self.pending = False

    def feed(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        held = after.endswith(REPLACEMENT) and len(self._ids) - self._read < MAX_HELD_TOKENS
        if held or len(after) <= len(before):
            self.pending = True
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        self.pending = False
        text = after[len(before) :]
        self._given.append(text)
        return text

    def finish(self) -> str:
        """The rest by the tokenizer's decoding of everything, which settles what the window could only guess."""
        self.pending = False
        given, whole = "".join(self._given), self._decode(self._ids)
        if whole.startswith(given):
            return whole[len(given) :]
        # A broken byte at the end of a run has changed how all of the run decodes; what is out is out.
        return self._decode(self._ids[self._prefix :])[len(self._decode(self._ids[self._prefix : self._read])) :]

    def copy(self) -> WindowDetokenizer:
        twin = copy(self)
        twin._ids, twin._given = self._ids.copy(), self._given.copy()
        return twin

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=self._skip_special)


class SkippingDetokenizer(WindowDetokenizer):
    """Leaves out some tokens, and no others, special or not."""

    __slots__ = ("_skipped",)

    def __init__(self, backend: Backend, skipped: frozenset[int]) -> None:
        super().__init__(backend, skip_special=False)
        self._skipped = skipped

    def feed(self, token: int) -> str:
        return "" if token in self._skipped else super().feed(token)


def json_inside(text: str) -> bytes:
    """`text` as the inside of a JSON string, without the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")


def is_byte_level(backend: Backend) -> bool:
    """Whether decoding is GPT-2's byte scheme and nothing else."""
    if backend.decoder is None:
        return False
    state = json.loads(backend.decoder.__getstate__())
    parts = state.get("decoders", [state])
    return [part.get("type") for part in parts] == ["ByteLevel"]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's scheme: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
