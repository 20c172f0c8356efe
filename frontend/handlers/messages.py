"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from frontend.body import decoder, read_json
from frontend.conversation import check_chat, prepare_chat, render
from frontend.field_names import in_terms_of
from frontend.generation import json_answer
from frontend.http_errors import Dialect, HttpError
from frontend.output_split import Delta, Kind
from frontend.part_stream import Outcome, Part, collect_parts, send_parts
from frontend.schemas.messages import MessagesRequest
from frontend.schemas.numbers import integer
from frontend.sse import encode
from frontend.translate import anthropic
from ipc.errors import InvalidRequestError

if TYPE_CHECKING:
    from frontend.app import App

_DECODER = decoder(MessagesRequest)
_NAMES = {
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}


def event(name: str, members: dict[str, Any]) -> bytes:
    """One event. Anthropic's clients drop those without the line that names them."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, **members}))


PING = event("ping", {})


@in_terms_of(_NAMES)
async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    wanted = integer("max_tokens", body.max_tokens)
    if wanted is None:
        raise InvalidRequestError("max_tokens is required", "max_tokens")
    chat = anthropic.chat_request(body)
    if app.client.preparer.thinking_marks is None:
        chat.thinking_token_budget = None  # a model that does not think keeps to any budget
    identity = f"msg_{secrets.token_hex(12)}"
    [work] = await prepare_chat(app, chat, identity, arrival_ns)
    # A limit that the context cut down ends the answer for another reason than the client's own.
    cut = (work.params.max_tokens or 0) < wanted
    script = MessageScript(identity, app.spec.model.name, len(work.prompt_ids), cut)
    if body.stream:
        return await send_parts(app, request, work, script, keepalive=PING)
    parts, outcome = await collect_parts(app, work)
    reason, sequence = _stop_reason(outcome, any(part.kind is Kind.ARGUMENTS for part in parts), cut)
    answer = script.message([_block(part) for part in parts], _usage(outcome))
    return json_answer(answer | {"stop_reason": reason, "stop_sequence": sequence})


@in_terms_of(_NAMES)
async def count_tokens(app: App, request: web.BaseRequest) -> web.Response:
    """How many tokens the prompt of such a request has."""
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    chat = anthropic.chat_request(body)
    check_chat(app, chat)
    _, ids = await render(app.client, chat, chat.read_tools())
    return json_answer({"input_tokens": len(ids)})


def _block(part: Part) -> dict[str, Any]:
    match part.kind:
        case Kind.CONTENT:
            return {"type": "text", "text": part.text}
        case Kind.REASONING:
            return {"type": "thinking", "thinking": part.text, "signature": ""}
        case _:
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(part.text)}


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; empty if the answer was cut before they were complete."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _stop_reason(outcome: Outcome, called: bool, cut: bool) -> tuple[str, str | None]:
    if outcome.finish_reason == "length":
        return "model_context_window_exceeded" if cut else "max_tokens", None
    if outcome.stop_string is not None:
        return "stop_sequence", outcome.stop_string
    return "tool_use" if called else "end_turn", None


def _usage(outcome: Outcome) -> dict[str, Any]:
    """Anthropic counts tokens that were read from the cache apart from the other input."""
    return {
        "input_tokens": outcome.input_tokens - outcome.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": outcome.cached_tokens,
        "output_tokens": outcome.output_tokens,
    }


_DELTAS = {
    Kind.CONTENT: b'"text_delta","text":"',
    Kind.REASONING: b'"thinking_delta","thinking":"',
    Kind.ARGUMENTS: b'"input_json_delta","partial_json":"',
}


class MessageScript:
    """Content blocks, numbered from 0, between message_start and message_stop."""

    numbered = False

    def __init__(self, identity: str, model: str, input_tokens: int, cut: bool) -> None:
        """cut: the context leaves less room than the client's max_tokens."""
        self._id, self._model, self._input_tokens, self._cut = identity, model, input_tokens, cut
        self._index = -1
        self._kind = Kind.CONTENT
        self._called = False
        self.logprobs: list[dict[str, Any]] = []  # never asked for in this API

    def message(self, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The message object, without an end."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def opening(self) -> bytes:
        usage = {
            "input_tokens": self._input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        return event("message_start", {"message": self.message([], usage)})

    def turn(self, delta: Delta, body: bytes) -> bytes:
        ended = self._end_block()
        self._index += 1
        self._kind = Kind.ARGUMENTS if delta.kind is Kind.CALL else delta.kind
        self._called = self._called or self._kind is Kind.ARGUMENTS
        block = _block(Part(self._kind, "", delta.name, delta.id))
        return ended + event("content_block_start", {"index": self._index, "content_block": block})

    def around(self) -> tuple[bytes, bytes]:
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b'
        return head % (self._index, _DELTAS[self._kind]), b'"}}\n\n'

    def closing(self, body: bytes, outcome: Outcome) -> bytes:
        reason, sequence = _stop_reason(outcome, self._called, self._cut)
        delta = {"delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": _usage(outcome)}
        return self._end_block() + event("message_delta", delta) + event("message_stop", {})

    def failure(self, error: HttpError) -> bytes:
        return b"event: error\ndata: " + error.body(Dialect.ANTHROPIC) + b"\n\n"

    def _end_block(self) -> bytes:
        return b"" if self._index < 0 else event("content_block_stop", {"index": self._index})
