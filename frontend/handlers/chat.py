"""POST /v1/chat/completions: messages in, a message out."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.body import decoder, read_json
from frontend.chat_stream import call_json
from frontend.conversation import prepare_chat
from frontend.generation import Answer, floor, json_generation, prompt_logprobs_json, stream_answer
from frontend.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from frontend.schemas.chat import ChatRequest
from frontend.sse import encode
from frontend.tokenizer import Tokenizer

if TYPE_CHECKING:
    from frontend.app import App

_DECODER = decoder(ChatRequest)


class ChatShape:
    """A choice of a chat.completion.chunk."""

    object = "chat.completion.chunk"
    text_open = b'"delta":{"content":"'
    text_close = b'"},"logprobs":'
    empty = b'"delta":{},"logprobs":'
    first: bytes | None = b'"delta":{"role":"assistant","content":""},"logprobs":'

    def logprobs(self, tokenizer: Tokenizer, entries: list[tuple[int, TokenLogprobs]], limit: int | None, offset: int) -> bytes:
        return encode({"content": [_token_logprobs(tokenizer, token, entry, limit) for token, entry in entries]})


SHAPE = ChatShape()


async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    identity = body.request_id or f"chatcmpl-{secrets.token_hex(14)}"
    works = await prepare_chat(app, body, identity, arrival_ns)
    answer = Answer(identity, app.spec.model.name, [works], SHAPE, None, body.include_usage, body.continuous_usage)
    if body.stream:
        return await stream_answer(app, request, answer)

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        return _choice(app, body, works[0].params.logprobs or 0, index, output, place)

    return await json_generation(app, answer, choice, "chat.completion")


def _choice(app: App, body: ChatRequest, top: int, index: int, output: RequestOutput, place: int) -> dict[str, Any]:
    each = output.outputs[place]
    logprobs = None
    if each.logprobs is not None:
        tokens = zip(each.token_ids, each.logprobs)
        logprobs = {"content": [_token_logprobs(app.client.tokenizer, token, entry, top) for token, entry in tokens], "refusal": None}
    choice = {
        "index": index,
        "message": _message(each, body.include_reasoning is not False),
        "logprobs": logprobs,
        "finish_reason": "tool_calls" if each.finish_reason == "stop" and each.message and each.message.calls else each.finish_reason,
        "stop_reason": each.stop_reason,
    }
    if body.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
    if body.return_token_ids:
        choice |= {"token_ids": each.token_ids, "prompt_token_ids": output.prompt_token_ids}
    return choice


def _message(output: CompletionOutput, show_reasoning: bool) -> dict[str, Any]:
    """The answer; reasoning under both names that clients look for."""
    parts = output.message
    if parts is None:
        return {"role": "assistant", "content": output.text, "refusal": None}
    # An empty answer is text, one that only calls or thinks has none.
    content = parts.content if parts.content is not None or parts.calls or parts.reasoning is not None else ""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if show_reasoning and parts.reasoning is not None:
        message |= {"reasoning_content": parts.reasoning, "reasoning": parts.reasoning}
    if parts.calls:
        message["tool_calls"] = [call_json(call) for call in parts.calls]
    return message


def _token_logprobs(tokenizer: Tokenizer, token: int, entry: TokenLogprobs, limit: int | None) -> dict[str, Any]:
    """OpenAI's object for one token: itself, and the `limit` most likely in order."""

    def one(each_token: int) -> dict[str, Any]:
        raw = tokenizer.token_bytes(each_token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": floor(entry[each_token].logprob), "bytes": list(raw)}

    best = sorted((each for each in entry if (entry[each].rank or 0) <= (limit or 0)), key=lambda each: entry[each].rank or 0)
    return {**one(token), "top_logprobs": [one(each) for each in best]}
