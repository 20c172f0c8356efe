"""The Harmony format of gpt-oss: every message of an answer has a header that names its channel and, for calls, whom it is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from frontend.output_split.calls import MAX_HEADER
from frontend.output_split.cursor import Cursor, NotACall, Parse
from frontend.output_split.deltas import Emitter, Kind

START, CHANNEL, MESSAGE, END, CALL, RETURN = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


@dataclass(frozen=True)
class Channels:
    """header, <|message|>, text, and a marker that ends the message. The first message's header may lack its beginning."""

    markers: tuple[str, ...] = (START, CHANNEL, "<|constrain|>", MESSAGE, END, CALL, RETURN)


def run(cursor: Cursor, emit: Emitter, tools: bool, thinking: Callable[[bool], None]) -> Parse[None]:
    """Split a whole answer. thinking: told when reasoning begins and ends. tools: False hands calls on as content."""
    while True:
        yield from cursor.skip_space()
        if not (yield from cursor.need(1)):
            return
        cursor.mark = cursor.at
        try:
            head = yield from _header(cursor)
        except NotACall:
            # No header: text. If a header's first marker stands here it is text as well, or nothing would ever move on.
            cursor.at, cursor.mark = cursor.mark, -1
            first = yield from cursor.match((START, CHANNEL))
            emit.say(Kind.CONTENT, first)
            stop = yield from cursor.until((START, CHANNEL, END, CALL, RETURN), lambda text: emit.say(Kind.CONTENT, text))
            if not stop:
                emit.end(Kind.CONTENT)
                return
            if stop in (START, CHANNEL):
                cursor.at -= len(stop)
            continue
        cursor.mark = -1
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        if recipient is not None and tools:
            emit.begin_call(recipient.group(1))
            yield from cursor.until((END, CALL, RETURN, START), emit.arguments)
            emit.end_call()
            continue
        reasons = channel is not None and channel.group(1) == "analysis"
        kind = Kind.REASONING if reasons else Kind.CONTENT
        thinking(reasons)
        emit.edge()
        stop = yield from cursor.until((END, CALL, RETURN, START), lambda text, kind=kind: emit.say(kind, text))  # type: ignore[misc]
        if not stop:
            emit.end(kind)
            return
        if stop == START:
            cursor.at -= len(stop)
        thinking(False)
        emit.edge()


def _header(cursor: Cursor) -> Parse[str]:
    """A message's header. Raises NotACall if none stands here."""
    first = yield from cursor.match((START, CHANNEL))
    if not first:
        raise NotACall
    head, stop = yield from cursor.read_until((MESSAGE, START, END, CALL, RETURN), MAX_HEADER)
    if stop != MESSAGE:
        raise NotACall
    return first + head
