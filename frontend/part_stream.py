"""Streams for APIs whose events tell of parts (blocks, items) that open, grow and close, rather than of chunks that all look alike.

A `Script` writes one API's frames; `PartStream` turns tokens into parts and keeps the direct path of frontend/sse.py: a token that is whole
characters goes out as prebuilt JSON between the script's head and tail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web
from aiohttp.http import HttpVersion11

from frontend import http_errors
from frontend.detokenizer import TokenJson, json_inside
from frontend.generation import SSE_HEADERS, send_stream
from frontend.http_errors import HttpError
from frontend.output_split import Delta, Kind
from frontend.sse import Framed, SseResponse
from frontend.stream import Stream, Work
from frontend.token_logprobs import token_logprobs, wanted_logprobs
from frontend.tokenizer import Tokenizer

if TYPE_CHECKING:
    from frontend.app import App


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer ended. Times in nanoseconds; finish_reason and stop_reason as in frontend/outputs.py. ids: all its tokens but a stop
    token that is no text."""

    finish_reason: str
    stop_reason: int | str | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_ns: int = 0  # from arrival to the first token
    output_ns: int = 0
    ids: Sequence[int] = ()

    @classmethod
    def of_stream(cls, stream: Stream, reasoning_tokens: int = 0) -> Outcome:
        """Of a stream that has ended."""
        work, first = stream.work, stream.first_ns or stream.work.arrival_ns
        return cls(
            stream.reason or "abort",
            stream.stop_reason,
            len(work.prompt_ids),
            len(stream.ids),
            stream.cached_tokens or 0,
            reasoning_tokens,
            first - work.arrival_ns,
            max(0, stream.last_ns - first),
            stream.shown_ids,
        )

    @property
    def stop_string(self) -> str | None:
        return self.stop_reason if isinstance(self.stop_reason, str) else None


class Script(Protocol):
    """How one API tells of an answer. Every method gives whole frames; `body` is text as the inside of a JSON string."""

    logprobs: list[dict[str, Any]]  # of tokens whose text comes next, where the request asks for them; the script takes them out
    numbered: bool  # heads and tails differ from one frame to the next; `around` is then called for each, and never gives None

    def opening(self) -> bytes:
        """Before anything else, and not before there is something."""

    def turn(self, delta: Delta, body: bytes) -> bytes:
        """The open part ends, its whole text was `body`; the part that `delta` belongs to begins."""

    def around(self) -> tuple[bytes, bytes] | None:
        """What stands before and after a piece of the open part's text; None if such a part is told of when it is whole."""

    def closing(self, body: bytes, outcome: Outcome) -> bytes:
        """The open part, if there is one, and the answer end."""

    def failure(self, error: HttpError) -> bytes:
        """The answer fails after it has begun."""


class FrameSink(Protocol):
    """Where a PartStream's frames go: a response, or a log that others read."""

    def add(self, stream: Framed) -> None: ...
    def preface(self, data: bytes) -> None: ...
    def text(self, stream: Framed, body: bytes) -> None: ...
    def frame(self, stream: Framed | None, data: bytes) -> None: ...
    def ended(self, error: Exception | None) -> None: ...


class PartStream(Stream):
    """One completion, told by a script. head, tail, backlog: see frontend/sse.py."""

    __slots__ = (
        "_body",
        "_fast",
        "_json",
        "_part",
        "_reasoning_tokens",
        "_script",
        "_show_reasoning",
        "_sink",
        "_splitter",
        "_tells",
        "_with_logprobs",
        "backlog",
        "head",
        "tail",
    )

    def __init__(self, work: Work, tokenizer: Tokenizer, sink: FrameSink, script: Script) -> None:
        super().__init__(work, tokenizer)
        self._sink, self._script = sink, script
        splitting = work.splitting
        self._splitter = splitting.splitter() if splitting is not None else None
        self._show_reasoning = splitting is None or splitting.show_reasoning
        self._part: tuple[Kind, int] | None = None
        self._body: list[bytes] = []
        self._tells = False
        self._reasoning_tokens = 0
        self.head = self.tail = b""
        self.backlog: list[bytes] = []
        # Special tokens that are markers become text as well, which the prebuilt table leaves out.
        self._with_logprobs = work.params.logprobs is not None
        simple = not self.watched and not self._with_logprobs and not (splitting is not None and splitting.kept)
        self._fast: TokenJson | None = tokenizer.json_tables.get(work.params.skip_special_tokens) if simple else None
        self._json = self._fast if splitting is None else None
        sink.add(self)
        opening = script.opening()
        if opening:
            sink.preface(opening)

    def push(self, token: int) -> bool:
        if self._json is not None:
            if not self._detokenizer.pending:
                body = self._json[token]
                if body is not None:
                    if body:
                        self._write(CONTENT, body)
                    return False
            text = self.text_of(token)
            if text:
                self._write(CONTENT, json_inside(text))
            return False
        if self.row is not None:
            params = self.work.params
            entry = self.logprobs_of(token, self.row, params.logprobs)
            self._script.logprobs.append(token_logprobs(self._tokenizer, token, entry, wanted_logprobs(params)))
        splitter = self._splitter
        if splitter is None:
            self._say(self.text_of(token))
            return self.stopped
        self._tell(splitter.feed_token(self.text_of(token)))
        self._reasoning_tokens = splitter.reasoning_tokens
        if splitter.plain:
            self._tell(splitter.release())
            self._splitter, self._json = None, self._fast
        # After the one call that was allowed, nothing more would come out.
        return self.stopped or splitter.done

    def push_last(self, token: int) -> None:
        if self.work.params.include_stop_str_in_output:
            self._say(self._detokenizer.feed(token))

    def on_end(self) -> None:
        if self.error is None:
            self._say(self.last_text())
            if self._splitter is not None:
                self._tell(self._splitter.finish())
            outcome = Outcome.of_stream(self, self._reasoning_tokens)
            self._sink.frame(self, self._script.closing(b"".join(self._body), outcome))
        self._sink.ended(self.error)

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._splitter is None:
            self._write(CONTENT, json_inside(text))
        else:
            self._tell(self._splitter.feed(text))

    def _tell(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            if delta.kind is Kind.REASONING and not self._show_reasoning:
                continue
            if delta.kind is Kind.CALL:
                self._turn((Kind.ARGUMENTS, delta.call), delta)
            elif delta.text:
                self._write((delta.kind, delta.call), json_inside(delta.text))

    def _write(self, part: tuple[Kind, int], body: bytes) -> None:
        if part != self._part:
            self._turn(part, Delta(part[0], call=part[1]))
        self._body.append(body)
        if self._with_logprobs:
            # No two pieces have the same, so none can wait to be joined with another.
            self._surround()
            if self._tells:
                self._sink.frame(self, self.head + body + self.tail)
        elif self._tells:
            # Text that is kept already has its place, and its number, in the frame that is to come.
            if self._script.numbered and not self.backlog:
                self._surround()
            self._sink.text(self, body)

    def _turn(self, part: tuple[Kind, int], delta: Delta) -> None:
        del self._script.logprobs[:-1]  # of tokens before the first of this part
        frames = self._script.turn(delta, b"".join(self._body))
        if frames or self.backlog:  # text of the old part that is kept goes into frames of the old part
            self._sink.frame(self, frames)
        self._part, self._body = part, []
        if self._script.numbered or self._with_logprobs:
            self._tells = True  # each piece takes its number when it comes
        else:
            self._surround()

    def _surround(self) -> None:
        around = self._script.around()
        self._tells = around is not None
        if around is not None:
            self.head, self.tail = around


CONTENT = (Kind.CONTENT, -1)


@dataclass(slots=True)
class Part:
    """A finished part of an answer. text: content, reasoning, or a call's arguments as JSON text; name and id: the call's. logprobs: of
    a content's tokens, where the request asks for them."""

    kind: Kind
    text: str
    name: str = ""
    id: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def take_logprobs(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of `given`, which is emptied, that are this part's: only content has any."""
        taken = given[:] if self.kind is Kind.CONTENT else []
        given.clear()
        self.logprobs += taken
        return taken


class _Collector:
    """Script and sink at once, for an answer that goes out whole."""

    numbered = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.parts: list[Part] = []
        self.outcome: Outcome | None = None
        self.done: asyncio.Future[None] = loop.create_future()
        self._open: Part | None = None
        self.logprobs: list[dict[str, Any]] = []

    def opening(self) -> bytes:
        return b""

    def turn(self, delta: Delta, body: bytes) -> bytes:
        self._close(body)
        kind = Kind.ARGUMENTS if delta.kind is Kind.CALL else delta.kind
        self._open = Part(kind, "", delta.name, delta.id)
        return b""

    def around(self) -> tuple[bytes, bytes] | None:
        if self._open is not None:
            self._open.take_logprobs(self.logprobs)
        return None

    def closing(self, body: bytes, outcome: Outcome) -> bytes:
        self._close(body)
        self.outcome = outcome
        return b""

    def failure(self, error: HttpError) -> bytes:
        return b""

    def add(self, stream: Framed) -> None:
        pass

    def preface(self, data: bytes) -> None:
        pass

    def text(self, stream: Framed, body: bytes) -> None:
        pass

    def frame(self, stream: Framed | None, data: bytes) -> None:
        pass

    def ended(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    def _close(self, body: bytes) -> None:
        if self._open is not None:
            self._open.text = text_of(body)
            self.parts.append(self._open)
            self._open = None


def text_of(body: bytes) -> str:
    """The inside of a JSON string as the text it stands for."""
    return msgspec.json.decode(b'"' + body + b'"', type=str)


async def collect_parts(app: App, work: Work) -> tuple[list[Part], Outcome]:
    """The whole answer, when it has ended. Cancelling the caller aborts it."""
    collector = _Collector(asyncio.get_running_loop())
    stream = PartStream(work, app.client.tokenizer, collector, collector)
    try:
        app.client.open([stream])
        await collector.done
    finally:
        app.client.drop([stream])
    assert collector.outcome is not None
    return collector.parts, collector.outcome


async def send_parts(
    app: App,
    request: web.BaseRequest,
    work: Work,
    script: Script,
    headers: Mapping[str, str] = SSE_HEADERS,
    keepalive: bytes | None = None,
) -> web.StreamResponse:
    """Send one completion as its script tells it."""
    response = SseResponse(asyncio.get_running_loop(), chunked=request.version >= HttpVersion11)
    stream = PartStream(work, app.client.tokenizer, response, script)

    def finish() -> None:
        if response.error is not None:
            response.frame(stream, script.failure(http_errors.of(response.error)))

    return await send_stream(app, request, response, [stream], finish, headers, keepalive)
