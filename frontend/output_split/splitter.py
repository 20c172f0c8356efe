"""The splitter: text of an answer in, as it is written; content, reasoning and tool calls out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontend.output_split import channels
from frontend.output_split.calls import Calls
from frontend.output_split.channels import Channels
from frontend.output_split.cursor import Cursor, NotACall, Parse
from frontend.output_split.deltas import Delta, Emitter, Kind
from frontend.output_split.formats import ReasoningFormat, ToolFormat


class Splitter:
    """One answer's splitter. How the text is cut into pieces does not change what comes out, but for where deltas are cut.

    Holds back only text that may turn out to be a marker or the head of a call. What looks like a call and is none comes out as content;
    nothing that is fed is lost but markers, white space beside them, and members of a call's object that mean nothing to clients.
    Never raises, whatever the text.
    """

    __slots__ = ("_cursor", "_emit", "_plain", "_reasoning", "_run", "_schemas", "_tools", "reasoning_tokens", "thinking")

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        opened: bool = False,
        parallel: bool = True,
    ) -> None:
        """schemas: by tool name, the JSON schema of its parameters. opened: the prompt ends inside of reasoning. parallel: False keeps
        only the first call."""
        self._tools, self._reasoning, self._schemas = tools, reasoning, schemas or {}
        self._cursor = Cursor()
        self._emit = Emitter(tools.ids if tools is not None else None, parallel)
        self.thinking = opened  # the text is inside of reasoning now
        self.reasoning_tokens = 0  # of those fed one by one
        self._plain = False
        self._run = self._channels() if _in_channels(tools, reasoning) else self._answer(opened)
        self._advance()

    def feed(self, text: str) -> list[Delta]:
        """Deltas that `text` completes."""
        if text:
            self._cursor.add(text)
            self._advance()
        return self._emit.take()

    def feed_token(self, text: str) -> list[Delta]:
        """As `feed`, for the text of one token, which is counted if it is reasoning; markers of reasoning count as well."""
        thinking = self.thinking
        deltas = self.feed(text)
        if thinking or self.thinking:
            self.reasoning_tokens += 1
        return deltas

    def finish(self) -> list[Delta]:
        """The rest, when nothing more comes."""
        self._cursor.ended = True
        self._advance()
        return self._emit.take()

    @property
    def done(self) -> bool:
        """The only call that was allowed is complete: nothing that follows would come out."""
        return self._emit.done

    @property
    def plain(self) -> bool:
        """All that follows is content as it is: after `release`, the splitter is not needed any more."""
        return self._plain and self._emit.settled

    def release(self) -> list[Delta]:
        """What is held back, when `plain`."""
        self._emit.end(Kind.CONTENT)
        return self._emit.take()

    def _advance(self) -> None:
        try:
            next(self._run)
        except StopIteration:
            pass

    def _channels(self) -> Parse[None]:
        def thinking(now: bool) -> None:
            self.thinking = now

        return channels.run(self._cursor, self._emit, self._tools is not None, thinking)

    def _answer(self, opened: bool) -> Parse[None]:
        """Everything but channels."""
        cursor, emit, tools, reasoning = self._cursor, self._emit, self._tools, self._reasoning
        if opened and reasoning is not None:
            emit.edge()
            yield from self._thoughts(reasoning)
        elif reasoning is not None:
            lead = ""
            while (char := (yield from cursor.peek())).isspace():
                lead += char
                cursor.at += 1
            if (yield from cursor.match((reasoning.begin,))):
                emit.edge()
                yield from self._thoughts(reasoning)
            else:
                emit.say(Kind.CONTENT, lead)
        if tools is not None and tools.bare:
            yield from self._bare_section(tools)
        begins = tools.begin if tools is not None else ()
        interleaved = (reasoning.begin,) if reasoning is not None and reasoning.interleaved else ()
        dropped = reasoning.dropped if reasoning is not None else ()
        stops = (*begins, *interleaved, *dropped)
        self._plain = not stops
        while stop := (yield from cursor.until(stops, self._content)):
            if stop in begins:
                yield from self._section(stop)
            else:
                emit.edge()
                if stop in interleaved and reasoning is not None:
                    yield from self._thoughts(reasoning)
        emit.end(Kind.CONTENT)

    def _content(self, text: str) -> None:
        self._emit.say(Kind.CONTENT, text)

    def _thoughts(self, reasoning: ReasoningFormat) -> Parse[None]:
        cursor, emit = self._cursor, self._emit
        begins = self._tools.begin if self._tools is not None and reasoning.ends_at_tool_call else ()
        self.thinking = True
        stop = yield from cursor.until((reasoning.end, *begins), lambda text: emit.say(Kind.REASONING, text))
        if not stop:
            emit.end(Kind.REASONING)
            return
        if stop in begins:
            cursor.at -= len(stop)
        self.thinking = False
        emit.edge()

    def _bare_section(self, tools: ToolFormat) -> Parse[None]:
        """Calls at the start of the answer without a marker, if there are any."""
        cursor = self._cursor
        cursor.mark = cursor.at
        try:
            yield from cursor.skip_space()
            if (yield from cursor.peek()) not in ("[", "{"):
                raise NotACall
            yield from self._calls(tools, known_only=True)
        except NotACall:
            cursor.at = cursor.mark
        cursor.mark = -1

    def _section(self, begin: str) -> Parse[None]:
        """Calls after the marker `begin`, which is content if none follow."""
        cursor, tools = self._cursor, self._tools
        assert tools is not None
        cursor.mark = cursor.at - len(begin)
        try:
            yield from self._calls(tools, known_only=False)
        except NotACall:
            cursor.at = cursor.mark + len(begin)
            self._content(begin)
        cursor.mark = -1

    def _calls(self, tools: ToolFormat, known_only: bool) -> Parse[None]:
        """The calls of one section. Raises NotACall, with the cursor's mark where it was, if there is not even one."""
        cursor, payload = self._cursor, tools.payload
        assert not isinstance(payload, Channels)
        opens = tuple(each for each in (getattr(payload, "open", ""),) if each)
        borders = (*tools.end, *tools.begin)
        calls = Calls(cursor, self._emit, self._schemas, known_only, borders or opens)
        while True:
            yield from cursor.skip_space()
            if (yield from cursor.match(tools.end)):
                if not calls.begun:
                    raise NotACall
                return
            if calls.begun:
                cursor.mark = cursor.at
                if (yield from cursor.match(tools.begin)):
                    calls.listed = ""
                elif not (yield from cursor.match(tools.between)) and not calls.listed and not tools.end:
                    return
                yield from cursor.skip_space()
                if not (yield from cursor.peek()):
                    return
            try:
                yield from payload.parse(calls)
                cursor.mark = -1
            except NotACall:
                if not calls.begun:
                    raise
                cursor.at, cursor.mark, calls.listed = cursor.mark, -1, ""
                if not tools.end or not (yield from self._between(tools, opens)):
                    return

    def _between(self, tools: ToolFormat, opens: tuple[str, ...]) -> Parse[bool]:
        """Text inside of a section that is no call: content. Whether the section goes on after it."""
        cursor = self._cursor
        if (yield from cursor.need(1)):
            cursor.at += 1
            self._content(cursor.text[cursor.at - 1])
        stop = yield from cursor.until((*tools.end, *tools.begin, *opens), self._content)
        if stop in opens:
            cursor.at -= len(stop)
        if stop:
            self._emit.edge()
        else:
            self._emit.end(Kind.CONTENT)
        return bool(stop) and stop not in tools.end


def _in_channels(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> bool:
    return (tools is not None and isinstance(tools.payload, Channels)) or (reasoning is not None and reasoning.channels)
