"""The response object of /v1/responses, and the events that tell of it as it grows."""

from __future__ import annotations

import time
from typing import Any

from frontend.http_errors import HttpError
from frontend.output_split import Delta, Kind
from frontend.part_stream import Outcome, Part, text_of
from frontend.schemas.responses import ResponsesRequest
from frontend.sse import encode

_PREFIXES = {Kind.CONTENT: "msg", Kind.REASONING: "rs", Kind.ARGUMENTS: "fc"}
_DELTAS = {
    Kind.CONTENT: "response.output_text.delta",
    Kind.REASONING: "response.reasoning_text.delta",
    Kind.ARGUMENTS: "response.function_call_arguments.delta",
}


def new_document(body: ResponsesRequest, identity: str, model: str, temperature: float, top_p: float, stored: bool) -> dict[str, Any]:
    """The response object before anything is generated. OpenAI's clients read every one of these members."""
    reasoning, text = body.reasoning or {}, body.text or {}
    return {
        "id": identity,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": stored,
        "temperature": temperature,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": None,
        "metadata": body.metadata or {},
    }


class ResponseScript:
    """Items between response.created and response.completed. It keeps `document` up to date; every event carries its number."""

    numbered = True

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._number = 0
        self._part: Part | None = None
        self.logprobs: list[dict[str, Any]] = []

    # the object

    def finish(self, parts: list[Part], outcome: Outcome) -> None:
        """All at once, without events."""
        for part in parts:
            self._part = part
            self._keep(outcome.finish_reason)
        self._end(outcome)

    def fail(self, error: HttpError, status: str = "failed") -> None:
        """The response ends without an answer, or without all of it."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error" if error.status >= 500 else "invalid_prompt"
        self.document |= {"status": status, "error": {"code": code, "message": error.message}}

    def _end(self, outcome: Outcome) -> None:
        document = self.document
        if not any(item["type"] != "reasoning" for item in document["output"]) and outcome.finish_reason == "stop":
            # Clients look for a message; one that says nothing is a message still.
            self._part = Part(Kind.CONTENT, "")
            self._keep("stop")
        status = {"length": "incomplete", "abort": "cancelled"}.get(outcome.finish_reason, "completed")
        document["status"] = status
        if status == "incomplete":
            document["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "completed":
            document["completed_at"] = int(time.time())
        document["usage"] = {
            "input_tokens": outcome.input_tokens,
            "input_tokens_details": {"cached_tokens": outcome.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": outcome.output_tokens,
            "output_tokens_details": {"reasoning_tokens": outcome.reasoning_tokens},
            "total_tokens": outcome.input_tokens + outcome.output_tokens,
        }

    def _keep(self, finish_reason: str | None) -> dict[str, Any]:
        """The open part is complete, or all that there will be of it."""
        assert self._part is not None
        item = self._item(self._part, "completed" if finish_reason in (None, "stop") else "incomplete")
        self.document["output"].append(item)
        self._part = None
        return item

    def _item(self, part: Part, status: str) -> dict[str, Any]:
        common = {"id": self._item_id(part.kind), "status": status}
        match part.kind:
            case Kind.CONTENT:
                return {"type": "message", "role": "assistant", "content": [_content(part)], **common}
            case Kind.REASONING:
                return {"type": "reasoning", "summary": [], "content": [_content(part)], **common}
            case _:
                return {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.text, **common}

    def _item_id(self, kind: Kind) -> str:
        return f"{_PREFIXES[kind]}_{self.document['id'].removeprefix('resp_')}_{self._place}"

    @property
    def _place(self) -> int:
        return len(self.document["output"])

    # the events

    def opening(self) -> bytes:
        created = self._whole("response.created")
        if self.document["status"] == "queued":
            created += self._whole("response.queued")
            self.document["status"] = "in_progress"
        return created + self._whole("response.in_progress")

    def turn(self, delta: Delta, body: bytes) -> bytes:
        ended = self._end_part(body, None)
        kind = Kind.ARGUMENTS if delta.kind is Kind.CALL else delta.kind
        return ended + self._begin_part(Part(kind, "", delta.name, delta.id))

    def around(self) -> tuple[bytes, bytes]:
        assert self._part is not None
        kind = self._part.kind
        members = self._where()
        taken = self._part.take_logprobs(self.logprobs)
        if kind is Kind.CONTENT:
            members["logprobs"] = taken
        members["sequence_number"] = self._next()
        name = _DELTAS[kind]
        head = b'event: %b\ndata: {"type":"%b",%b,"delta":"' % (name.encode(), name.encode(), encode(members)[1:-1])
        return head, b'"}\n\n'

    def closing(self, body: bytes, outcome: Outcome) -> bytes:
        ended = self._end_part(body, outcome.finish_reason)
        before = self._place
        self._end(outcome)
        if self._place > before:
            # The empty message that `_end` put there is told of like any other.
            self.document["output"].pop()
            ended += self._begin_part(Part(Kind.CONTENT, "")) + self._end_part(b"", "stop")
        return ended + self._whole("response.completed" if self.document["status"] == "completed" else "response.incomplete")

    def failure(self, error: HttpError) -> bytes:
        self.fail(error)
        return self._whole("response.failed")

    def _begin_part(self, part: Part) -> bytes:
        self._part = part
        item = self._item(part, "in_progress")
        if part.kind is not Kind.ARGUMENTS:
            item["content"] = []
        added = self._event("response.output_item.added", {"output_index": self._place, "item": item})
        if part.kind is Kind.ARGUMENTS:
            return added
        return added + self._event("response.content_part.added", self._where() | {"part": _content(part)})

    def _end_part(self, body: bytes, finish_reason: str | None) -> bytes:
        part = self._part
        if part is None:
            return b""
        part.text = text_of(body)
        where, place = self._where(), self._place
        if part.kind is Kind.ARGUMENTS:
            members = where | {"name": part.name, "arguments": part.text}
            ended = self._event("response.function_call_arguments.done", members)
        elif part.kind is Kind.CONTENT:
            ended = self._event("response.output_text.done", where | {"text": part.text, "logprobs": part.logprobs})
            ended += self._event("response.content_part.done", where | {"part": _content(part)})
        else:
            ended = self._event("response.reasoning_text.done", where | {"text": part.text})
            ended += self._event("response.content_part.done", where | {"part": _content(part)})
        item = self._keep(finish_reason)
        return ended + self._event("response.output_item.done", {"output_index": place, "item": item})

    def _where(self) -> dict[str, Any]:
        """Which item, and which part of it, an event is about."""
        assert self._part is not None
        where: dict[str, Any] = {"item_id": self._item_id(self._part.kind), "output_index": self._place}
        return where if self._part.kind is Kind.ARGUMENTS else where | {"content_index": 0}

    def _whole(self, name: str) -> bytes:
        return self._event(name, {"response": self.document})

    def _event(self, name: str, members: dict[str, Any]) -> bytes:
        document = encode({"type": name, **members, "sequence_number": self._next()})
        return b"event: %b\ndata: %b\n\n" % (name.encode(), document)

    def _next(self) -> int:
        self._number += 1
        return self._number - 1


def _content(part: Part) -> dict[str, Any]:
    if part.kind is Kind.REASONING:
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": part.logprobs}
