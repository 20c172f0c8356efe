"""Calls with a tag around each parameter: the function's name, then name and value pairs. Values are typed by the tool's schema."""

from __future__ import annotations

import json
from dataclasses import dataclass

from frontend.output_split import typed_values
from frontend.output_split.calls import MAX_HEADER, Calls
from frontend.output_split.cursor import NotACall, Parse
from frontend.output_split.json_text import inside


@dataclass(frozen=True)
class TaggedCalls:
    """open, NAME, name_end, then per parameter: parameter, ITS NAME, separator (parts with white space between), VALUE, close; then end.

    string_attribute: in what stands between a parameter's name and its value, the word that marks text. newlines: values stand on lines of
    their own, so one line break at each edge belongs to the format.
    """

    open: str
    name_end: str
    parameter: str
    separator: tuple[str, ...]
    close: str
    end: str
    string_attribute: str = ""
    newlines: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.open, self.parameter, self.close, self.end, *(each for each in self.separator if len(each) > 2))))

    def parse(self, calls: Calls) -> Parse[None]:
        """One function."""
        cursor, emit = calls.cursor, calls.emit
        yield from cursor.expect(self.open)
        name = yield from cursor.name()
        if self.name_end:
            yield from cursor.expect(self.name_end)
        yield from cursor.skip_space()
        if not self.name_end:
            # A name alone may be any word: it is a call if what belongs after it is there.
            following = yield from cursor.match((self.parameter, *calls.stops))
            cursor.at -= len(following)
            if not following:
                raise NotACall
        calls.begin(name)
        emit.arguments("{")
        count = 0
        while True:
            yield from cursor.skip_space()
            if (yield from cursor.match((self.parameter,))):
                if not (yield from self._parameter(calls, name, ", " if count else "")):
                    return
                count += 1
            elif not self.end or (yield from cursor.match((self.end,))):
                if not self.end and not (yield from cursor.peek()):
                    return  # cut short
                break
            elif not (yield from cursor.peek()):
                return
            else:
                break  # the end is missing; what stands here is judged by the caller
        emit.arguments("}")
        emit.end_call()

    def _parameter(self, calls: Calls, function: str, before: str) -> Parse[bool]:
        """One name and value; False if the text ended in it."""
        cursor, emit = calls.cursor, calls.emit
        first, *rest = self.separator
        head: list[str] = []
        if not (yield from cursor.until((first,), head.append)):
            emit.arguments(before + '"' + inside("".join(head)))
            return False
        name, _, attributes = "".join(head).strip().partition('"')
        for part in rest:
            yield from cursor.skip_space()
            yield from cursor.match((part,))
        types = typed_values.types_of(calls.schemas.get(function, {}), name[:MAX_HEADER])
        if self.string_attribute and attributes:
            literal = types - {"string"} or typed_values.ANYTHING - {"string"}
            types = frozenset({"string"}) if self.string_attribute in attributes else literal
        emit.arguments(f"{before}{json.dumps(name, ensure_ascii=False)}: ")
        stops = (self.close,) if self.close else calls.stops
        if typed_values.is_text(types):
            return (yield from self._text(calls, stops))
        value: list[str] = []
        stop = yield from cursor.until(stops, value.append)
        text = "".join(value)
        emit.arguments(typed_values.to_json(text.strip("\n") if self.newlines else text, types) if stop else inside(text))
        return bool(stop)

    def _text(self, calls: Calls, stops: tuple[str, ...]) -> Parse[bool]:
        """A string, passed on while it comes."""
        cursor, emit = calls.cursor, calls.emit
        emit.arguments('"')
        if self.newlines:
            yield from cursor.match(("\n",))
        held = ""

        def more(text: str) -> None:
            nonlocal held
            text = held + text
            held = "\n" if self.newlines and text.endswith("\n") else ""
            emit.arguments(inside(text[:-1] if held else text))

        stop = yield from cursor.until(stops, more)
        if not stop:
            emit.arguments(inside(held))
            return False
        emit.arguments('"')
        return True
