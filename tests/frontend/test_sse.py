"""Frames, and what happens when the client does not keep up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from frontend import sse
from frontend.generation import Answer
from frontend.handlers import chat, completions
from frontend.sse import Shape, SseResponse, SseStream, Usage
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc.sampling_params import SamplingParams
from tests.api.server import chunks, events
from tests.frontend import backends

TOKENIZER = Tokenizer(backends.byte_level(), {}, None)


class Sink:
    """A transport that pauses its writer when it holds `limit` bytes."""

    def __init__(self, limit: int = 10**9) -> None:
        self.data = bytearray()
        self.limit, self.held = limit, 0
        self.response: SseResponse | None = None

    def write(self, data: bytes) -> None:
        self.data += data
        self.held += len(data)
        if self.held > self.limit and self.response is not None:
            self.response.pause()

    def drain(self) -> None:
        self.held = 0
        assert self.response is not None
        self.response.resume()


def make(
    loop: asyncio.AbstractEventLoop, params: SamplingParams, shape: Shape = chat.SHAPE, **options: Any
) -> tuple[SseResponse, SseStream]:
    work = Work(request_id="r", index=0, prompt=None, prompt_ids=[1], params=params, seed=0, arrival_ns=0)
    response = SseResponse(loop, chunked=options.pop("chunked", True))
    prefix = Answer("id", "m", [[work]], shape).prefix(7)
    return response, SseStream(work, TOKENIZER, response, shape, prefix, 0, Usage(1), **options)


def feed(stream: SseStream, ids: list[int]) -> None:
    for token in ids:
        stream.ids.append(token)
        if stream.push(token):
            stream.end("stop")
            return
    stream.end("length")


def in_loop(body: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    async def go() -> None:
        body(asyncio.get_running_loop())

    asyncio.run(go())


def text_of(found: list[Any]) -> str:
    return "".join(
        each["choices"][0]["delta"].get("content", "") if "delta" in each["choices"][0] else each["choices"][0]["text"] for each in found
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40), st.sampled_from([30, 300, 1000, 10**9]), st.booleans())
def test_the_text_is_whole_however_slowly_it_is_read(ids: list[int], limit: int, stops: bool) -> None:
    params = SamplingParams(stop=["\x00" * 64]) if stops else SamplingParams()

    def body(loop: asyncio.AbstractEventLoop) -> None:
        response, stream = make(loop, params)
        sink = Sink(limit)
        sink.response = response
        for place, token in enumerate(ids):
            stream.ids.append(token)
            assert not stream.push(token)
            if place == 2:
                response.open(sink)
            if place % 7 == 6 and place > 2:
                sink.drain()
        stream.end("length")
        if len(ids) <= 2:
            response.open(sink)
        while not response.direct:
            sink.drain()
        found = events(b"".join(chunks(bytes(sink.data) + b"0\r\n\r\n")))
        assert text_of(found) == TOKENIZER.decode(ids)
        assert found[0]["choices"][0]["delta"]["role"] == "assistant"
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert response.done.done()

    in_loop(body)


def test_nothing_is_written_before_headers_are() -> None:
    def body(loop: asyncio.AbstractEventLoop) -> None:
        response, stream = make(loop, SamplingParams())
        assert not response.first.done(), "the role alone is no reason to answer"
        feed(stream, TOKENIZER.encode("hello"))
        assert response.first.done()
        sink = Sink()
        response.open(sink)
        assert text_of(events(b"".join(chunks(bytes(sink.data) + b"0\r\n\r\n")))) == "hello"

    in_loop(body)


def test_both_shapes_without_chunked_framing() -> None:
    def body(loop: asyncio.AbstractEventLoop) -> None:
        for shape in (chat.SHAPE, completions.SHAPE):
            response, stream = make(loop, SamplingParams(), shape, chunked=False, include_usage=True)
            sink = Sink()
            response.open(sink)
            feed(stream, TOKENIZER.encode('say "hi"\n\\ 😀'))
            found = events(bytes(sink.data))
            assert text_of(found) == 'say "hi"\n\\ 😀'
            assert all(each["usage"] is None and each["id"] == "id" and each["created"] == 7 for each in found)
            assert len(found) > 5

    in_loop(body)


def test_a_reader_that_never_reads_is_cut_off() -> None:
    def body(loop: asyncio.AbstractEventLoop) -> None:
        response, stream = make(loop, SamplingParams())
        sink = Sink(0)
        sink.response = response
        response.open(sink)
        ids = TOKENIZER.encode("hello world ") * 100
        pushed = 0
        while not response.done.done():
            for token in ids:
                stream.ids.append(token)
                stream.push(token)
            pushed += len(ids)
            assert pushed < 2_000_000, "the backlog has no bound"
        assert response.overflowed
        assert response._size < 2 * sse.MAX_BACKLOG_BYTES

    in_loop(body)


def test_an_error_ends_the_response() -> None:
    def body(loop: asyncio.AbstractEventLoop) -> None:
        response, stream = make(loop, SamplingParams())
        error = RuntimeError("x")
        stream.end("error", None, error)
        assert response.first.done() and response.done.done() and response.error is error

    in_loop(body)


def test_usage_counts() -> None:
    usage = Usage(3)
    usage.completion_tokens, usage.cached_tokens = 4, 2
    assert json.loads(usage.json()) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
