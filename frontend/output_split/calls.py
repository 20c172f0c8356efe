"""How one tool call may be written: the payload shapes that formats are made of, and a parser for each.

A parser reads one call at the cursor. Until it has given out the call's beginning it may raise NotACall, and the text becomes content.
After that nothing is taken back: arguments that break off or go wrong are handed on as they are, up to the format's next marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.output_split.cursor import Cursor, NotACall, Parse
from frontend.output_split.deltas import Emitter
from frontend.output_split.json_text import JsonScanner, NotJson

MAX_HEADER = 512
_NAME = re.compile("[^\\s\\x00-\\x1f\ud800-\udfff]{1,256}")


@dataclass(slots=True)
class Calls:
    """What a payload parser works with.

    schemas: by tool name, the JSON schema of its parameters. known_only: a call must name one of them. stops: markers that end the
    arguments of a call that has gone wrong. listed: inside a list of calls. begun: calls given out so far.
    """

    cursor: Cursor
    emit: Emitter
    schemas: Mapping[str, Mapping[str, Any]]
    known_only: bool
    stops: tuple[str, ...]
    listed: str = ""
    begun: int = 0

    def begin(self, name: str, given_id: str = "") -> None:
        """Give out a call's beginning. Raises NotACall for a name that cannot be one."""
        if not _NAME.fullmatch(name) or (self.known_only and name not in self.schemas):
            raise NotACall
        self.begun += 1
        self.emit.begin_call(name, given_id if _NAME.fullmatch(given_id) else "")
        self.cursor.mark = -1

    def json_object(self) -> Parse[None]:
        """Pass on the JSON object that stands here, as arguments."""
        cursor, scanner, emit = self.cursor, JsonScanner(), self.emit
        while not scanner.done:
            char = yield from cursor.peek()
            if not char:
                return
            try:
                text = scanner.feed(char)
            except NotJson:
                # The markers that could follow stand outside of strings, so what comes up to one of them belongs to this call.
                stop = yield from cursor.until(self.stops, emit.arguments)
                cursor.at -= len(stop)
                return
            cursor.at += 1
            emit.arguments(text)
        emit.end_call()


@dataclass(frozen=True)
class JsonCalls:
    """{"name": ..., "arguments": {...}}, or a list of such objects. Keys by any of the given names, in any order.

    bare_name: also NAME{...}, with `argument_marker` between the two where the model writes it and an id after `id_marker`.
    """

    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments", "parameters")
    id_keys: tuple[str, ...] = ("id", "tool_call_id")
    bare_name: bool = False
    id_marker: str = ""
    argument_marker: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.id_marker, self.argument_marker)))

    def parse(self, calls: Calls) -> Parse[None]:
        """One object; inside a list, with the brackets and commas around it."""
        cursor = calls.cursor
        if not calls.listed and (yield from cursor.match(("[",))):
            calls.listed = "["
            yield from cursor.skip_space()
        char = yield from cursor.peek()
        if char == "{":
            yield from self._object(calls)
        elif self.bare_name and not calls.listed:
            yield from self._named(calls)
        else:
            raise NotACall
        if calls.listed:
            yield from cursor.skip_space()
            if (yield from cursor.match(("]", ","))) == "]":
                calls.listed = ""

    def _named(self, calls: Calls) -> Parse[None]:
        cursor = calls.cursor
        name = yield from cursor.name()
        given_id = ""
        if self.id_marker and (yield from cursor.match((self.id_marker,))):
            given_id = yield from cursor.name()
        if self.argument_marker:
            yield from cursor.match((self.argument_marker,))
        yield from cursor.skip_space()
        if (yield from cursor.peek()) != "{":
            raise NotACall
        calls.begin(name, given_id)
        yield from calls.json_object()

    def _object(self, calls: Calls) -> Parse[None]:
        cursor, name, given_id, held = calls.cursor, "", "", None
        begun = False
        yield from cursor.expect("{")
        while True:
            yield from cursor.skip_space()
            char = yield from cursor.peek()
            if char == "}":
                cursor.at += 1
                break
            if char != '"' and begun:
                return  # what follows is judged by the caller
            key = yield from _json_value(cursor)
            if calls.known_only and not begun and key not in (*self.name_keys, *self.argument_keys, *self.id_keys, "type"):
                raise NotACall  # some other object; do not hold it back to its end
            yield from cursor.skip_space()
            yield from cursor.expect(":")
            yield from cursor.skip_space()
            if key in self.argument_keys and held is None and not begun:
                char = yield from cursor.peek()
                if char == "{" and name:
                    calls.begin(name, given_id)
                    begun = True
                    yield from calls.json_object()
                else:
                    held = yield from _arguments_value(cursor)
            else:
                value = yield from _json_value(cursor)
                if begun:
                    pass  # no more is wanted of this object
                elif key in self.name_keys and isinstance(value, str):
                    name = value
                    if calls.known_only and name not in calls.schemas:
                        raise NotACall
                elif key in self.id_keys and isinstance(value, str):
                    given_id = value
            if begun:
                cursor.mark = cursor.at
            yield from cursor.skip_space()
            char = yield from cursor.peek()
            if char == ",":
                cursor.at += 1
            elif char != "}":
                if begun:
                    return
                raise NotACall
        if not begun:
            calls.begin(name, given_id)
            calls.emit.arguments(held if held is not None else "{}")
            calls.emit.end_call()


@dataclass(frozen=True)
class HeadedCalls:
    """NAME and then the arguments as a JSON object, in markers: open, prefix, NAME, separator, {...}, close.

    numbered: the name is written functions.NAME:NUMBER, and the whole of that is the call's id. White space is free between the parts,
    and each part of `close` may be missing.
    """

    open: str = ""
    prefix: str = ""
    separator: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.open, self.prefix, *self.separator, *self.close)))

    def parse(self, calls: Calls) -> Parse[None]:
        """One call."""
        cursor = calls.cursor
        yield from cursor.expect(self.open)
        yield from cursor.skip_space()
        yield from cursor.expect(self.prefix)
        yield from cursor.skip_space()
        if self.numbered:
            given_id, _ = yield from cursor.read_until(self.separator[:1], MAX_HEADER)
            given_id = given_id.strip()
            name = given_id.rpartition(":")[0].removeprefix("functions.") or given_id
            if not all(char.isalnum() or char in "_.-" for char in name):
                raise NotACall
        else:
            given_id, name = "", (yield from cursor.name())
            yield from cursor.skip_space()
            for part in self.separator:
                yield from cursor.expect(part)
                yield from cursor.skip_space()
        yield from cursor.skip_space()
        if (yield from cursor.peek()) != "{":
            raise NotACall
        calls.begin(name, given_id)
        yield from calls.json_object()
        for part in self.close:
            cursor.mark = cursor.at
            yield from cursor.skip_space()
            if not (yield from cursor.match((part,))):
                cursor.at = cursor.mark
        cursor.mark = -1


def _json_value(cursor: Cursor) -> Parse[Any]:
    """Read one JSON value of any kind. Raises NotACall if it is none."""
    char = yield from cursor.peek()
    text = ""
    if char in ("{", "[", '"'):
        scanner = JsonScanner()
        while not scanner.done:
            char = yield from cursor.char()
            try:
                text += scanner.feed(char) if char else _fail()
            except NotJson:
                raise NotACall from None
    else:
        while (char := (yield from cursor.peek())) and char in "+-.0123456789eEtrufalsn" and len(text) < 64:
            text += char
            cursor.at += 1
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotACall from None


def _fail() -> str:
    raise NotACall


def _arguments_value(cursor: Cursor) -> Parse[str]:
    """Arguments that are not simply an object after the name: before the name, as a string of JSON, or null."""
    value = yield from _json_value(cursor)
    if value is None:
        return "{}"
    if isinstance(value, str):
        try:
            inner = json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise NotACall from None
        if not isinstance(inner, dict):
            raise NotACall
        return value or "{}"
    if not isinstance(value, dict):
        raise NotACall
    return json.dumps(value, ensure_ascii=False)
