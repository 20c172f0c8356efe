"""Calls written as Python: f(a=1, b="x"). Read as a syntax tree, never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.output_split import typed_values
from frontend.output_split.calls import Calls
from frontend.output_split.cursor import NotACall, Parse


@dataclass(frozen=True)
class PythonCalls:
    """Calls in a list, [f(a=1), g()], or, where `bracketed` is False, one to a line. A call is given out when it is complete."""

    bracketed: bool = True

    @property
    def markers(self) -> tuple[str, ...]:
        return ()

    def parse(self, calls: Calls) -> Parse[None]:
        """One call, with the brackets and commas around it."""
        cursor = calls.cursor
        if self.bracketed and not calls.listed:
            yield from cursor.expect("[")
            calls.listed = "["
            yield from cursor.skip_space()
        name = yield from cursor.name()
        inner = yield from _parentheses(calls)
        arguments = _arguments(inner, calls.schemas.get(name, {}))
        if self.bracketed:
            yield from cursor.skip_space()
            closing = yield from cursor.match(("]", ","))
            if not closing:
                raise NotACall
            if closing == "]":
                calls.listed = ""
        calls.begin(name)
        calls.emit.arguments(arguments)
        calls.emit.end_call()


def _parentheses(calls: Calls) -> Parse[str]:
    """The text from here to the matching closing parenthesis, both included. Raises NotACall."""
    cursor, text, depth, quote, escaped = calls.cursor, [], 0, "", False
    while True:
        char = yield from cursor.char()
        if not char or (depth == 0 and char != "("):
            raise NotACall
        text.append(char)
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return "".join(text)


def _arguments(text: str, schema: Mapping[str, Any]) -> str:
    """JSON text of a call's arguments; those without a name take the schema's names in order. Raises NotACall."""
    properties = schema.get("properties")
    names = list(properties) if isinstance(properties, Mapping) else []
    try:
        # Line breaks inside quotes, which models write, are no Python.
        call = typed_values.parse_expression("f" + _escape_line_breaks(text))
        if not isinstance(call, ast.Call) or len(call.args) > len(names):
            raise NotACall
        found = {name: typed_values.value_of(value) for name, value in zip(names, call.args)}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in found:
                raise NotACall
            found[keyword.arg] = typed_values.value_of(keyword.value)
        return typed_values.dump(found)
    except (ValueError, RecursionError):
        raise NotACall from None


def _escape_line_breaks(text: str) -> str:
    if "\n" not in text:
        return text
    parts, quote, escaped = [], "", False
    for char in text:
        if quote:
            parts.append("\\n" if char == "\n" and not escaped else char)
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        else:
            parts.append(char)
            if char in "\"'":
                quote = char
    return "".join(parts)
