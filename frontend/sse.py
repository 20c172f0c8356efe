"""Server-sent events written from the engine client's loop: frames are prebuilt around the text and go straight to the transport.

A stream's client that reads slowly takes its response out of the direct path: text gathers, joined, until the transport has drained.
One that does not read at all is cut off when the bound is reached.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import msgspec

from frontend.detokenizer import TokenJson, json_inside
from frontend.outputs import TokenLogprobs
from frontend.stream import Stream, Work
from frontend.token_logprobs import Wanted, wanted_logprobs
from frontend.tokenizer import Tokenizer

MAX_BACKLOG_BYTES = 1024 * 1024
TRANSPORT_HIGH_WATER = 256 * 1024
STUCK_SECONDS = 60.0

# What begins a chunk of so many bytes; a frame of one token is shorter than this.
_SIZES = [b"%x\r\n" % size for size in range(1024)]

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Extras:
    """What chunks carry beyond their text, and how often they come.

    token_ids: of each chunk's tokens, and once the prompt's. prompt_text: once. interval: a chunk for so many tokens; the first token
    comes at once.
    """

    token_ids: bool = False
    prompt_text: bool = False
    interval: int = 1


NO_EXTRAS = Extras()

# Tokens with what is known of each; nothing is of a prompt's first.
Entries = list[tuple[int, TokenLogprobs | None]]


class Shape(Protocol):
    """How one API writes a choice: the JSON around its text and its logprobs."""

    object: str
    text_open: bytes
    text_close: bytes
    empty: bytes
    first: bytes | None  # content of a first frame, before any text
    prompt_in_choice: bool  # where a chunk tells of the prompt: in the choice, or beside the choices

    def logprobs(self, tokenizer: Tokenizer, entries: Entries, wanted: Wanted, offset: int) -> bytes:
        """JSON of tokens' logprobs; offset: characters of the tokens before them."""


class Sink(Protocol):
    """The transport side of a response; aiohttp's and a test's."""

    def write(self, data: bytes) -> None: ...


class Framed(Protocol):
    """What a response asks of a stream: the bytes around its text as they stand now, and a place for text that cannot go out yet."""

    head: bytes
    tail: bytes
    backlog: list[bytes]


class Usage:
    """Token counts of one response over all its choices; `json` is OpenAI's object."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.cached_tokens: int | None = None
        self.reasoning_tokens: int | None = None

    def json(self) -> bytes:
        return encode(self.document())

    def document(self) -> dict[str, object]:
        details = None if self.cached_tokens is None else {"cached_tokens": self.cached_tokens}
        usage: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": details,
        }
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage


class SseResponse:
    """One HTTP response that carries the frames of one or more streams.

    Closed at first: frames gather until `open`, which the handler calls once headers can go out, so that a request that is refused still
    gets its proper status. `first` is done at the first frame or error, `done` when all streams have ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, chunked: bool = True) -> None:
        """chunked: HTTP/1.1's framing; without it the connection's end ends the body."""
        self.direct = False  # frames may go straight to `write`
        self.chunked = chunked
        self.first: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: Exception | None = None
        self.overflowed = False
        self.streams: list[Framed] = []
        self._running = 0
        self._frames: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._paused = False

    def add(self, stream: Framed) -> None:
        self.streams.append(stream)
        self._running += 1

    def preface(self, data: bytes) -> None:
        """A frame to go out ahead of the first token, and not before it."""
        self._frames.append(data)

    def open(self, sink: Sink) -> None:
        """Headers are out: write what has gathered, and everything else directly."""
        self._sink = sink
        self._flush()

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._paused = True
        self.direct = False

    def resume(self) -> None:
        """The transport has drained."""
        self._paused = False
        if self._sink is not None:
            self._flush()

    def text(self, stream: Framed, body: bytes) -> None:
        """Send text (the inside of a JSON string) in a frame of `stream`, or keep it for later."""
        if self.direct:
            head, tail = stream.head, stream.tail
            size = len(head) + len(body) + len(tail)
            if self.chunked and size < len(_SIZES):
                self._sink.write(b"".join((_SIZES[size], head, body, tail, b"\r\n")))  # type: ignore[union-attr]
            else:
                self._sink.write(self._framed(head + body + tail))  # type: ignore[union-attr]
            return
        stream.backlog.append(body)
        self._kept(len(body))

    def frame(self, stream: Framed | None, data: bytes, bounded: bool = True) -> None:
        """Send a whole frame, after the text that `stream` has kept. bounded: it counts as unread; else it is of a size that the request
        set and not the time that its client takes."""
        if self.direct:
            self._sink.write(self._framed(data))  # type: ignore[union-attr]
            return
        if stream is not None:
            self._settle(stream)
        self._frames.append(data)
        self._kept(len(data) if bounded else 0)

    def ended(self, error: Exception | None) -> None:
        """One stream has ended."""
        self._running -= 1
        if error is not None and self.error is None:
            self.error = error
        if not self.first.done():
            self.first.set_result(None)
        if not self.done.done() and (self._running == 0 or error is not None):
            self.done.set_result(None)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def _kept(self, size: int) -> None:
        self._size += size
        if not self.first.done():
            self.first.set_result(None)
        if self._size > MAX_BACKLOG_BYTES and not self.done.done():
            self.overflowed = True
            self.done.set_result(None)

    def _settle(self, stream: Framed) -> None:
        if stream.backlog:
            self._frames.append(stream.head + b"".join(stream.backlog) + stream.tail)
            stream.backlog.clear()

    def _flush(self) -> None:
        assert self._sink is not None
        for stream in self.streams:
            self._settle(stream)
        frames, self._frames, self._size = self._frames, [], 0
        if frames:
            self._sink.write(self._framed(b"".join(frames)))
        # The write itself may have filled the transport again.
        self.direct = not self._paused


class SseStream(Stream):
    """Writes its tokens into a response.

    head, tail: the frame around a text, prebuilt. Tokens that are whole characters go out as prebuilt JSON, without becoming a string here.
    """

    __slots__ = (
        "_echo",
        "_entries",
        "_held",
        "_interval",
        "_json",
        "_new_ids",
        "_offset",
        "_prefix",
        "_prompt",
        "_response",
        "_shape",
        "_usage",
        "_usage_each",
        "_usage_null",
        "_with_logprobs",
        "backlog",
        "choice",
        "head",
        "tail",
    )

    def __init__(
        self,
        work: Work,
        tokenizer: Tokenizer,
        response: SseResponse,
        shape: Shape,
        prefix: bytes,
        choice: int,
        usage: Usage,
        include_usage: bool = False,
        continuous_usage: bool = False,
        extras: Extras = NO_EXTRAS,
    ) -> None:
        """prefix: the chunk's JSON up to its choices. choice: the index that the client sees."""
        super().__init__(work, tokenizer)
        self._response, self._shape, self._usage = response, shape, usage
        self._usage_each = continuous_usage
        self._usage_null = b',"usage":null' if include_usage else b""
        self._prefix = b'data: %b,"choices":[{"index":%d,' % (prefix, choice)
        self.choice = choice
        self.head = self._prefix + shape.text_open
        self.tail = shape.text_close + b'null,"finish_reason":null}]' + self._usage_null + b"}\n\n"
        self.backlog: list[bytes] = []
        self._with_logprobs = work.params.logprobs is not None
        self._entries: Entries = []
        self._offset = 0  # characters of the tokens whose logprobs were sent; a text's own may come later, or never
        self._echo: str | None = None
        self._interval = extras.interval
        self._held = ""
        self._new_ids: list[int] | None = [] if extras.token_ids else None
        self._prompt = about_prompt(extras, work, tokenizer)
        special = self._with_logprobs or continuous_usage or extras != NO_EXTRAS
        simple = not (self.watched or special)
        self._json: TokenJson | None = tokenizer.json_tables.get(work.params.skip_special_tokens) if simple else None
        response.add(self)
        if shape.first is not None:
            response.preface(self._chunk(shape.first, b"null", b"null"))

    def begin_with(self, text: str) -> None:
        """Text of the choice that comes before the model's, as with echo; with its tokens' logprobs where the work asks for those."""
        if self.work.params.prompt_logprobs is not None:
            self._echo = text  # they are not known before the first token
        else:
            self._response.preface(self._chunk(self._text(text), b"null", b"null"))

    def push(self, token: int) -> bool:
        self._usage.completion_tokens += 1
        if self._json is not None:
            if not self._detokenizer.pending:
                body = self._json[token]
                if body is not None:
                    if body:
                        self._response.text(self, body)
                    return False
            text = self.text_of(token)
            if text:
                self._response.text(self, json_inside(text))
            return False
        self._tell_echo()
        text = self.text_of(token)
        self._note(token)
        self._send(text)
        return self.stopped

    def push_last(self, token: int) -> None:
        self._usage.completion_tokens += 1
        self._tell_echo()
        self._note(token)
        if self.work.params.include_stop_str_in_output:
            self._send(self._detokenizer.feed(token))

    def on_end(self) -> None:
        if self.error is None:
            self._tell_echo()
            self._interval = 1
            self._send(self.last_text())
            if self.cached_tokens is not None and self.work.index == 0:
                self._usage.cached_tokens = (self._usage.cached_tokens or 0) + self.cached_tokens
            reason = encode(self.reason)
            stop = b',"stop_reason":' + encode(self.stop_reason)
            self._response.frame(self, self._chunk(self._shape.empty, b"null", reason + stop))
        self._response.ended(self.error)

    def _note(self, token: int) -> None:
        """Keep what the next chunk is to say of the token besides its text."""
        if self.row is not None:
            self._entries.append((token, self.logprobs_of(token, self.row, self.work.params.logprobs)))
        if self._new_ids is not None:
            self._new_ids.append(token)

    @property
    def _waits(self) -> bool:
        """Whether it is not yet time for the next chunk."""
        return self._interval > 1 and len(self.ids) % self._interval != 1

    def _send(self, text: str) -> None:
        """A frame for new text, with logprobs if there are any; a token that is no text yet still shows its logprobs."""
        if self._waits:
            self._held += text
            return
        if self._held:
            text, self._held = self._held + text, ""
        if not text and not self._entries:
            return
        if not self._with_logprobs and not self._usage_each and self._new_ids is None and not self._prompt:
            self._response.text(self, json_inside(text))
            return
        self._response.frame(self, self._chunk(self._text(text), self._logprobs(), b"null"))

    def _tell_echo(self) -> None:
        """The text that comes before the model's, if it has waited for its logprobs."""
        if self._echo is None:
            return
        body, self._echo = self._text(self._echo), None
        self._entries = list(zip(self.work.prompt_ids, self.prompt_logprobs() or []))
        self._response.frame(self, self._chunk(body, self._logprobs(), b"null"), bounded=False)

    def _text(self, text: str) -> bytes:
        return self._shape.text_open + json_inside(text) + self._shape.text_close

    def _logprobs(self) -> bytes:
        """Of the tokens that were noted since the last call."""
        entries, self._entries = self._entries, []
        if not entries:
            return b"null"
        told = self._shape.logprobs(self._tokenizer, entries, wanted_logprobs(self.work.params), self._offset)
        self._offset += sum(len(self._tokenizer.token_text(token)) for token, _ in entries)
        return told

    def _chunk(self, body: bytes, logprobs: bytes, finish: bytes) -> bytes:
        """body: the choice's members up to the value of its logprobs."""
        usage = b',"usage":' + self._usage.json() if self._usage_each else self._usage_null
        if self._new_ids is not None:
            finish += b',"token_ids":' + encode(self._new_ids)
            self._new_ids = []
        if self._prompt:
            if self._shape.prompt_in_choice:
                finish += self._prompt
            else:
                usage = self._prompt + usage
            self._prompt = b""
        return self._prefix + body + logprobs + b',"finish_reason":' + finish + b"}]" + usage + b"}\n\n"


def about_prompt(extras: Extras, work: Work, tokenizer: Tokenizer) -> bytes:
    """Members of an object that tell of the prompt, each after a comma; empty if nothing is asked for."""
    found = b""
    if extras.token_ids:
        found += b',"prompt_token_ids":' + encode(work.prompt_ids)
    if extras.prompt_text:
        found += b',"prompt_text":' + encode(prompt_text(work, tokenizer))
    return found


def prompt_text(work: Work, tokenizer: Tokenizer) -> str:
    """The prompt as text, special tokens by their names."""
    return work.prompt if work.prompt is not None else tokenizer.decode(work.prompt_ids, skip_special_tokens=False)


def event(document: bytes) -> bytes:
    """One event with a JSON document as its data."""
    return b"data: " + document + b"\n\n"


DONE = b"data: [DONE]\n\n"
