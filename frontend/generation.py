"""Runs prepared requests for the HTTP handlers: as one JSON answer, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http import HttpVersion11

from frontend import http_errors
from frontend.chat_stream import ChatSseStream
from frontend.connection import Connection
from frontend.echo_stream import EchoStream
from frontend.outputs import RequestOutput, TokenLogprobs
from frontend.sse import DONE, NO_EXTRAS, STUCK_SECONDS, Extras, Shape, SseResponse, SseStream, Usage, encode, event
from frontend.stream import Stream, Work
from frontend.token_logprobs import floor

if TYPE_CHECKING:
    from frontend.app import App

SSE_COMMENT = b": still here\n\n"
SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the two generating APIs have in common. prompts: for each prompt, its n completions. echo_alone: nothing follows the echo."""

    id: str
    model: str
    prompts: list[list[Work]]
    shape: Shape
    echo: list[str] | None = None  # text that each prompt's completions begin with, in a stream
    include_usage: bool = False
    continuous_usage: bool = False
    extras: Extras = NO_EXTRAS
    echo_alone: bool = False

    def prefix(self, created: int) -> bytes:
        """A chunk's JSON up to its choices."""
        return encode({"id": self.id, "object": self.shape.object, "created": created, "model": self.model})[:-1]


def json_answer(document: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=encode(document), status=status, content_type="application/json")


def usage_of(outputs: Sequence[RequestOutput]) -> Usage:
    """Token counts over all prompts; a prompt counts once, however many completions it has."""
    usage = Usage(sum(len(output.prompt_token_ids) for output in outputs))
    usage.completion_tokens = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    if any(each.message is not None for output in outputs for each in output.outputs):
        usage.reasoning_tokens = sum(each.reasoning_tokens for output in outputs for each in output.outputs)
    cached = [output.num_cached_tokens for output in outputs if output.num_cached_tokens is not None]
    usage.cached_tokens = sum(cached) if cached else None
    return usage


def prompt_logprobs_json(entries: list[TokenLogprobs | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's shape: per prompt token an object from token id to logprob, rank and text."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {"logprob": floor(each.logprob), "rank": each.rank, "decoded_token": each.decoded_token}
            for token, each in entry.items()
        }
        for entry in entries
    ]


async def stream_answer(app: App, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Send an answer as OpenAI's events."""
    response = SseResponse(asyncio.get_running_loop(), chunked=request.version >= HttpVersion11)
    usage = Usage(sum(len(prompt[0].prompt_ids) for prompt in answer.prompts))
    created = int(time.time())
    streams = _streams(app, answer, response, usage, created)
    if answer.echo_alone and streams[0].work.params.prompt_logprobs is None:
        for stream in streams:
            stream.end("length")
        streams = []  # the engine has nothing to do
    return await send_stream(app, request, response, streams, lambda: _finish(response, answer, usage, created))


async def send_stream(
    app: App,
    request: web.BaseRequest,
    response: SseResponse,
    streams: Sequence[Stream],
    finish: Callable[[], None],
    headers: Mapping[str, str] = SSE_HEADERS,
    keepalive: bytes | None = SSE_COMMENT,
) -> web.StreamResponse:
    """Submit streams that write into `response`, and send that as it grows; `finish` adds the last frames when all have ended.

    Errors before the first frame raise. Later ones, and those after the first silent spell, are for `finish` to tell: the status is out.
    keepalive: sent whenever no token has come for `stream_keepalive` seconds; None where the protocol has no room for it.
    """
    connection = request.protocol
    assert isinstance(connection, Connection)
    silence = app.server_config.stream_keepalive if keepalive is not None else 0.0
    pulse: Pulse | None = None
    connection.response = response
    try:
        app.client.open(streams)
        # A client that waits in the queue hears of it: its headers go out, and from then on errors are events.
        await asyncio.wait([response.first], timeout=silence or None)
        if response.error is not None:
            raise response.error
        http = web.StreamResponse(headers={**headers, **app.response_headers(request)})
        if response.chunked:
            http.enable_chunked_encoding()
        else:
            http.force_close()
        writer = await http.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client has left")
        writer.send_headers()
        response.open(transport)
        if silence and keepalive is not None:
            pulse = Pulse(response, streams, silence, keepalive, beat_now=not response.first.done())
        await response.done
        if not response.overflowed:
            finish()
        if not await drained(connection, response):
            app.metrics.count("slow_readers")
            transport.abort()
            raise ConnectionResetError("the client does not read")
        await http.write_eof()
        return http
    finally:
        if pulse is not None:
            pulse.stop()
        connection.response = None
        app.client.drop(streams)


class Pulse:
    """Writes a sign of life into a response for which no token has come since it last looked. The token path knows nothing of it."""

    def __init__(self, response: SseResponse, streams: Sequence[Stream], seconds: float, data: bytes, beat_now: bool = False) -> None:
        self._response, self._streams, self._seconds, self._data = response, streams, seconds, data
        self._count = 0 if beat_now else -1
        self._timer: asyncio.TimerHandle | None = None
        if seconds:
            self._beat()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        count = sum(len(stream.ids) for stream in self._streams)
        if count == self._count and self._response.direct:
            self._response.frame(None, self._data)
        self._count = count
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._beat)


def _streams(app: App, answer: Answer, response: SseResponse, usage: Usage, created: int) -> list[SseStream]:
    streams: list[SseStream] = []
    prefix = answer.prefix(created)
    for place, prompt in enumerate(answer.prompts):
        for work in prompt:
            kind = EchoStream if answer.echo_alone else ChatSseStream if work.splitting is not None else SseStream
            stream = kind(
                work,
                app.client.tokenizer,
                response,
                answer.shape,
                prefix,
                len(streams),
                usage,
                include_usage=answer.include_usage,
                continuous_usage=answer.continuous_usage,
                extras=answer.extras,
            )
            streams.append(stream)
            if answer.echo is not None:
                stream.begin_with(answer.echo[place])
    return streams


def _finish(response: SseResponse, answer: Answer, usage: Usage, created: int) -> None:
    """The events after the last choice's last one."""
    if response.error is not None:
        response.frame(None, event(http_errors.of(response.error).body()))
    elif answer.include_usage:
        response.frame(None, event(answer.prefix(created) + b',"choices":[],"usage":' + usage.json() + b"}"))
    response.frame(None, DONE)


async def drained(connection: Connection, response: SseResponse) -> bool:
    """Wait until everything is in the transport's hands; False if the client has not read for too long."""
    if response.overflowed:
        return False
    while not response.direct:
        if connection.transport is None:
            raise ConnectionResetError("the client has left")
        try:
            await asyncio.wait_for(connection.drained(), STUCK_SECONDS)
        except TimeoutError:
            return False
    return True


ChoiceMaker = Callable[[int, RequestOutput, int], dict[str, Any]]


def outputs_json(
    answer: Answer,
    outputs: Sequence[RequestOutput],
    kind: str,
    choice: ChoiceMaker,
    usage: Usage | None = None,
    more: dict[str, Any] | None = None,
) -> web.Response:
    """The whole answer at once. choice(index, output, place) makes the JSON of output.outputs[place]. usage: if the outputs do not say
    all of it. more: further members."""
    choices: list[dict[str, Any]] = []
    for output in outputs:
        for place in range(len(output.outputs)):
            choices.append(choice(len(choices), output, place))
    return json_answer(
        {
            "id": answer.id,
            "object": kind,
            "created": int(time.time()),
            "model": answer.model,
            "choices": choices,
            "usage": (usage or usage_of(outputs)).document(),
            "system_fingerprint": None,
            **(more or {}),
        }
    )
