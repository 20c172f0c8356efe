"""POST /v1/chat/completions: messages in, a message out."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.beam_search import run
from frontend.body import decoder, read_json
from frontend.conversation import echoed, prepare_chat
from frontend.generation import Answer, outputs_json, prompt_logprobs_json, stream_answer
from frontend.outputs import CompletionOutput, RequestOutput
from frontend.schemas.chat import ChatRequest
from frontend.sse import Entries, encode, prompt_text
from frontend.stream import Work
from frontend.token_logprobs import Wanted, token_logprobs, wanted_logprobs
from frontend.tokenizer import Tokenizer

if TYPE_CHECKING:
    from frontend.app import App

_DECODER = decoder(ChatRequest)


class ChatShape:
    """A choice of a chat.completion.chunk. as_ids: logprobs name tokens by their ids."""

    object = "chat.completion.chunk"
    text_open = b'"delta":{"content":"'
    text_close = b'"},"logprobs":'
    empty = b'"delta":{},"logprobs":'
    first: bytes | None = b'"delta":{"role":"assistant","content":""},"logprobs":'
    prompt_in_choice = False

    def __init__(self, as_ids: bool = False) -> None:
        self._as_ids = as_ids

    def logprobs(self, tokenizer: Tokenizer, entries: Entries, wanted: Wanted, offset: int) -> bytes:
        content = [token_logprobs(tokenizer, token, entry, wanted, self._as_ids) for token, entry in entries if entry is not None]
        return encode({"content": content})


SHAPE, SHAPE_OF_IDS = ChatShape(), ChatShape(as_ids=True)


async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    identity = body.request_id or f"chatcmpl-{secrets.token_hex(14)}"
    beams = body.beams()
    works = await prepare_chat(app, body, identity, arrival_ns)
    echo = echoed(body)
    shape = SHAPE_OF_IDS if body.return_tokens_as_token_ids else SHAPE
    answer = Answer(
        identity, app.spec.model.name, [works], shape, [echo] if echo else None, body.include_usage, body.continuous_usage, body.extras
    )
    if body.stream:
        return await stream_answer(app, request, answer)

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        return _choice(app, body, wanted_logprobs(works[0].params), echo, index, output, place)

    outputs = await run(app.client, answer.prompts, beams)
    return outputs_json(answer, outputs, "chat.completion", choice, more=_about_prompt(app, body, works[0], outputs[0]))


def _about_prompt(app: App, body: ChatRequest, work: Work, output: RequestOutput) -> dict[str, Any]:
    """What a client asked to be told of its prompt, beside the choices as in vLLM."""
    found: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
    if body.return_token_ids:
        found["prompt_token_ids"] = output.prompt_token_ids
    if body.return_prompt_text:
        found["prompt_text"] = prompt_text(work, app.client.tokenizer)
    return found


def _choice(app: App, body: ChatRequest, wanted: Wanted, echo: str, index: int, output: RequestOutput, place: int) -> dict[str, Any]:
    each = output.outputs[place]
    logprobs = None
    if each.logprobs is not None:
        tokenizer, as_ids = app.client.tokenizer, bool(body.return_tokens_as_token_ids)
        tokens = zip(each.token_ids, each.logprobs)
        logprobs = {"content": [token_logprobs(tokenizer, token, entry, wanted, as_ids) for token, entry in tokens], "refusal": None}
    message = _message(each, body.include_reasoning is not False)
    if echo:
        message["content"] = echo + (message["content"] or "")
    choice = {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": each.finish_reason,
        "stop_reason": each.stop_reason,
    }
    if body.return_token_ids:
        choice["token_ids"] = each.token_ids
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
        message["tool_calls"] = [call.as_json() for call in parts.calls]
    return message
