"""JSON, one character at a time: where a value ends, and whether it is one."""

from __future__ import annotations

import json
import re

_SCALAR = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null")
_NUMBER_PART = frozenset("+-.0123456789eEtrufalsn")
_SPACE = frozenset(" \t\n\r")
MAX_DEPTH = 128

VALUE, KEY_OR_END, KEY, COLON, COMMA, VALUE_OR_END = range(6)


class NotJson(ValueError):
    """The character cannot stand here."""


class JsonScanner:
    """Feed characters of one object, array or string; `done` is set by the character that ends it. Raises NotJson on the first wrong one.

    Control characters inside strings, which models write and JSON forbids, are escaped in what `feed` returns.
    """

    __slots__ = ("_escaped", "_hex", "_scalar", "_stack", "_state", "_string", "done")

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._state = VALUE
        self._string = ""  # 'key' or 'value' inside a string
        self._escaped = False
        self._hex = 0  # hexadecimal digits still to come
        self._scalar = ""
        self.done = False

    def feed(self, char: str) -> str:
        """The character as it may stand in JSON."""
        if self._string:
            return self._in_string(char)
        if self._scalar:
            if char in _NUMBER_PART:
                self._scalar += char
                if len(self._scalar) > 64 * 1024:
                    raise NotJson
                return char
            if not _SCALAR.fullmatch(self._scalar):
                raise NotJson
            self._scalar = ""
        if char in _SPACE:
            return char
        self._structure(char)
        return char

    def _in_string(self, char: str) -> str:
        if self._hex:
            if char not in "0123456789abcdefABCDEF":
                raise NotJson
            self._hex -= 1
        elif self._escaped:
            if char not in '"\\/bfnrtu':
                raise NotJson
            self._escaped = False
            self._hex = 4 if char == "u" else 0
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._state = COLON if self._string == "key" else COMMA
            self._string = ""
            self.done = not self._stack
        elif char < " ":
            return json.dumps(char)[1:-1]
        return char

    def _structure(self, char: str) -> None:
        state, stack = self._state, self._stack
        if char in "}]" and stack and stack[-1] == ("{" if char == "}" else "["):
            if state not in (COMMA, KEY_OR_END if char == "}" else VALUE_OR_END):
                raise NotJson
            stack.pop()
            self._state = COMMA
            self.done = not stack
        elif char == "," and state == COMMA and stack:
            self._state = KEY if stack[-1] == "{" else VALUE
        elif char == ":" and state == COLON:
            self._state = VALUE
        elif char == '"' and state in (KEY, KEY_OR_END):
            self._string = "key"
        elif state in (VALUE, VALUE_OR_END):
            self._value(char)
        else:
            raise NotJson

    def _value(self, char: str) -> None:
        if char == '"':
            self._string = "value"
        elif char in "{[":
            if len(self._stack) >= MAX_DEPTH:
                raise NotJson
            self._stack.append(char)
            self._state = KEY_OR_END if char == "{" else VALUE_OR_END
        elif char in "-0123456789tfn" and self._stack:
            self._scalar = char
            self._state = COMMA
        else:
            raise NotJson


def inside(text: str) -> str:
    """`text` as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
