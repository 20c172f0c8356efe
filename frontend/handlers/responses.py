"""/v1/responses: create, read again, follow, cancel, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http import HttpVersion11

from frontend import http_errors
from frontend.body import decoder, read_json
from frontend.connection import Connection
from frontend.conversation import prepare_chat
from frontend.field_names import in_terms_of
from frontend.generation import SSE_COMMENT, SSE_HEADERS, Pulse, drained, json_answer
from frontend.part_stream import PartStream, collect_parts, send_parts
from frontend.response_script import ResponseScript, new_document
from frontend.response_store import EventLog, Stored
from frontend.schemas.responses import ResponsesRequest
from frontend.sse import SseResponse, encode
from frontend.stream import Work
from frontend.translate import responses as translate
from ipc.errors import InvalidRequestError

if TYPE_CHECKING:
    from frontend.app import App

_DECODER = decoder(ResponsesRequest)
PREFIX = "resp_"
MAX_PAGE = 100
CONTEXT_LENGTH = "context_length_exceeded"
_REPLAY_EVENTS = 256  # written at once


@in_terms_of(
    {
        "max_completion_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
    }
)
async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    body.check()
    if body.background:
        app.stored.need("background")
    items = translate.items_of(body)
    elsewhere = app.peers.owner(body.previous_response_id or "", PREFIX)
    if elsewhere is not None and isinstance(request.protocol, Connection):
        return await app.peers.forward(request, elsewhere, encode(body))
    if body.previous_response_id is not None:
        items = [*app.stored.previous(body.previous_response_id).conversation(), *items]
    identity = app.peers.new_id(PREFIX)
    [work] = await _prepare(app, body, items, identity, arrival_ns)
    keep = body.store is not False and not app.stored.why_not
    document = new_document(body, identity, app.spec.model.name, work.params.temperature, work.params.top_p, keep)
    script, stored = ResponseScript(document), Stored(document, items)
    if body.background:
        _start(app, work, script, stored, keep_events=bool(body.stream))
        return await _follow(app, request, stored, 0) if body.stream else json_answer(document)
    if body.stream:
        answer = await send_parts(app, request, work, script, keepalive=SSE_COMMENT)
    else:
        script.finish(*await collect_parts(app, work))
        answer = json_answer(document)
    if keep:
        app.stored.put(stored)
    return answer


async def _prepare(app: App, body: ResponsesRequest, items: list[dict[str, Any]], identity: str, arrival_ns: int) -> list[Work]:
    """With truncation auto, a conversation that is too long loses as many of its first turns as it must."""
    try:
        return await prepare_chat(app, translate.chat_request(body, items), identity, arrival_ns)
    except InvalidRequestError as error:
        shorter = translate.shortened(items) if body.truncation == "auto" and error.code == CONTEXT_LENGTH else []
        if not shorter:
            raise
    fitting = await prepare_chat(app, translate.chat_request(body, shorter[-1]), identity, arrival_ns)
    low, high = 0, len(shorter) - 1  # shorter[high] fits
    while low < high:
        middle = (low + high) // 2
        try:
            fitting = await prepare_chat(app, translate.chat_request(body, shorter[middle]), identity, arrival_ns)
            high = middle
        except InvalidRequestError as error:
            if error.code != CONTEXT_LENGTH:
                raise
            low = middle + 1
    return fitting


def _start(app: App, work: Work, script: ResponseScript, stored: Stored, keep_events: bool) -> None:
    """Run it without a client; its end finds its way into the store."""

    def ended(error: Exception | None) -> None:
        if error is not None:
            log.frame(None, script.failure(http_errors.of(error)))
        stored.stream = None
        if app.stored.has(stored):  # it may have been deleted
            app.stored.put(stored)
        app.release()

    log = EventLog(keep_events)
    stored.log = log if keep_events else None
    stream = stored.stream = PartStream(work, app.client.tokenizer, log, script)
    app.client.open([stream])
    app.hold()
    log.on_end = ended
    app.stored.put(stored)


Handler = Callable[["App", web.BaseRequest], Awaitable[web.StreamResponse]]


def _where_it_is(handler: Handler) -> Handler:
    """Let the process that keeps the response answer."""

    async def routed(app: App, request: web.BaseRequest) -> web.StreamResponse:
        elsewhere = app.peers.owner(_identity(request), PREFIX)
        return await handler(app, request) if elsewhere is None else await app.peers.forward(request, elsewhere)

    return routed


@_where_it_is
async def get(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """The response as it stands, or with ?stream=true its events after number `starting_after`. Raises HttpError 404."""
    stored = app.stored.get(_identity(request))
    query = request.rel_url.query
    stream = query.get("stream", "false").lower()
    if stream not in ("true", "1", "false", "0"):
        raise InvalidRequestError("stream must be true or false", "stream")
    after = query.get("starting_after")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 10):
        raise InvalidRequestError("starting_after must be the number of an event", "starting_after")
    if stream in ("false", "0"):
        return json_answer(stored.document)
    if stored.log is None:
        raise InvalidRequestError("only a response that was created with background and stream has events to read again", "stream")
    if stored.log.too_long:
        raise InvalidRequestError("this response's events were too many to keep; read it without stream", "stream")
    return await _follow(app, request, stored, 0 if after is None else int(after) + 1)


@_where_it_is
async def delete(app: App, request: web.BaseRequest) -> web.Response:
    """Forget a response; one that runs is ended. Raises HttpError 404."""
    stored = app.stored.get(_identity(request))
    app.stored.remove(stored.document["id"])
    await app.client.abort(stored.document["id"])
    return json_answer({"id": stored.document["id"], "object": "response", "deleted": True})


@_where_it_is
async def cancel(app: App, request: web.BaseRequest) -> web.Response:
    """End a background response early; once it has ended this changes nothing. Raises HttpError 404, InvalidRequestError."""
    stored = app.stored.get(_identity(request))
    if not stored.document["background"]:
        raise InvalidRequestError("only a background response can be cancelled; end another by closing its connection", "response_id")
    await app.client.abort(stored.document["id"])
    return json_answer(stored.document)


@_where_it_is
async def input_items(app: App, request: web.BaseRequest) -> web.Response:
    """What the response answers, earlier turns included, newest first unless order=asc. Raises HttpError 404."""
    stored, query = app.stored.get(_identity(request)), request.rel_url.query
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc", "order")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= MAX_PAGE):
        raise InvalidRequestError(f"limit must be an integer from 1 to {MAX_PAGE}", "limit")
    items = [_shown(stored, item, place) for place, item in enumerate(stored.items)]
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequestError("after must be the id of an item", "after")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return json_answer({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)})


def _shown(stored: Stored, item: dict[str, Any], place: int) -> dict[str, Any]:
    """An item with the members that clients count on, whatever short form it came in."""
    shown = {"id": f"item_{stored.document['id'].removeprefix('resp_')}_{place}", "type": "message", **item}
    if shown["type"] == "message" and isinstance(shown.get("content"), str):
        kind = "output_text" if shown.get("role") == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": shown["content"], **({"annotations": []} if kind == "output_text" else {})}]
    return shown


def _identity(request: web.BaseRequest) -> str:
    return request.path.split("/")[3]


async def _follow(app: App, request: web.BaseRequest, stored: Stored, place: int) -> web.StreamResponse:
    """Send a log's events from number `place` on, those that are there and those that come. Its reader may leave; it goes on."""
    log, connection = stored.log, request.protocol
    assert log is not None and isinstance(connection, Connection)
    http = web.StreamResponse(headers={**SSE_HEADERS, **app.response_headers(request)})
    chunked = request.version >= HttpVersion11
    if chunked:
        http.enable_chunked_encoding()
    else:
        http.force_close()
    writer = await http.prepare(request)
    transport = request.transport
    if writer is None or transport is None:
        raise ConnectionResetError("the client has left")
    writer.send_headers()
    while place < len(log.events):
        events = log.events[place : place + _REPLAY_EVENTS]
        place += len(events)
        await http.write(b"".join(events))
        await connection.drained()
    # From here to where it joins the followers nothing waits, so no event falls between.
    if log.too_long and not log.over:
        transport.abort()
        raise ConnectionResetError("its events are not kept any more")
    if not log.over:
        response = SseResponse(asyncio.get_running_loop(), chunked)
        pulse = Pulse(response, [stored.stream] if stored.stream is not None else [], app.server_config.stream_keepalive, SSE_COMMENT)
        connection.response = response
        response.open(transport)
        log.followers.append(response)
        try:
            await response.done
            if not await drained(connection, response):
                app.metrics.count("slow_readers")
                transport.abort()
                raise ConnectionResetError("the client does not read")
        finally:
            pulse.stop()
            log.followers.remove(response)
            connection.response = None
    await http.write_eof()
    return http
