"""POST /v1/chat/completions: messages in, a message out."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.body import decoder, read_json
from frontend.generation import Answer, floor, json_generation, prompt_logprobs_json, stream_answer
from frontend.outputs import RequestOutput, TokenLogprobs
from frontend.schemas.chat import ChatRequest
from frontend.schemas.numbers import integer
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
    app.check_model(body.model)
    body.check(app.spec.config.scheduler.scheduling_policy)
    body.check_chat()
    top = integer("top_logprobs", body.top_logprobs) or 0
    max_tokens = integer("max_completion_tokens", body.max_completion_tokens)
    if max_tokens is None:
        max_tokens = integer("max_tokens", body.max_tokens)
    params = body.sampling_params(app.spec.model, top if body.logprobs else None, max_tokens)
    params.validate(app.spec.model.vocab_size, app.spec.config.model.max_logprobs)
    app.check_count(params.n)
    text, ids = await app.client.tokenizer.encode_chat(
        [message.plain() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt if body.add_generation_prompt is not None else not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        **template_variables(body),
    )
    identity = body.request_id or f"chatcmpl-{secrets.token_hex(14)}"
    works = await app.client.prepare(
        ids,
        params,
        text=text,
        request_id=identity,
        priority=integer("priority", body.priority) or 0,
        cache_salt=body.cache_salt or "",
        arrival_ns=arrival_ns,
    )
    answer = Answer(identity, app.spec.model.name, [works], SHAPE, None, body.include_usage, body.continuous_usage)
    if body.stream:
        return await stream_answer(app, request, answer)

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        return _choice(app, body, top, index, output, place)

    return await json_generation(app, answer, choice, "chat.completion")


def template_variables(body: ChatRequest) -> dict[str, Any]:
    """What clients may pass on to the template."""
    given = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        given.setdefault("reasoning_effort", body.reasoning_effort)
    return given


def _choice(app: App, body: ChatRequest, top: int, index: int, output: RequestOutput, place: int) -> dict[str, Any]:
    each = output.outputs[place]
    logprobs = None
    if each.logprobs is not None:
        tokens = zip(each.token_ids, each.logprobs)
        logprobs = {"content": [_token_logprobs(app.client.tokenizer, token, entry, top) for token, entry in tokens], "refusal": None}
    choice = {
        "index": index,
        "message": {"role": "assistant", "content": each.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": each.finish_reason,
        "stop_reason": each.stop_reason,
    }
    if body.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
    if body.return_token_ids:
        choice |= {"token_ids": each.token_ids, "prompt_token_ids": output.prompt_token_ids}
    return choice


def _token_logprobs(tokenizer: Tokenizer, token: int, entry: TokenLogprobs, limit: int | None) -> dict[str, Any]:
    """OpenAI's object for one token: itself, and the `limit` most likely in order."""

    def one(each_token: int) -> dict[str, Any]:
        raw = tokenizer.token_bytes(each_token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": floor(entry[each_token].logprob), "bytes": list(raw)}

    best = sorted((each for each in entry if (entry[each].rank or 0) <= (limit or 0)), key=lambda each: entry[each].rank or 0)
    return {**one(token), "top_logprobs": [one(each) for each in best]}
