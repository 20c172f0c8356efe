"""POST /v1/completions: text in, text out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from frontend.body import decoder, read_json
from frontend.generation import Answer, floor, json_answer, json_generation, prompt_logprobs_json, stream_answer
from frontend.http_errors import not_supported
from frontend.outputs import RequestOutput, TokenLogprobs
from frontend.schemas.completions import CompletionRequest
from frontend.schemas.numbers import integer
from frontend.sse import encode
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc.errors import InvalidRequestError

if TYPE_CHECKING:
    from frontend.app import App

DEFAULT_MAX_TOKENS = 16
_DECODER = decoder(CompletionRequest)


class CompletionShape:
    """A choice of a text_completion chunk."""

    object = "text_completion"
    text_open = b'"text":"'
    text_close = b'","logprobs":'
    empty = b'"text":"","logprobs":'
    first: bytes | None = None

    def logprobs(self, tokenizer: Tokenizer, entries: list[tuple[int, TokenLogprobs]], limit: int | None, offset: int) -> bytes:
        return encode(legacy_logprobs([token for token, _ in entries], [entry for _, entry in entries], tokenizer, offset))


SHAPE = CompletionShape()


async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    app.check_model(body.model)
    body.check(app.spec.config.scheduler.scheduling_policy)
    if body.suffix:
        raise not_supported("suffix is not supported by this version of quire", "suffix")
    logprobs = integer("logprobs", body.logprobs)
    max_tokens = integer("max_tokens", body.max_tokens)
    echo = bool(body.echo)
    nothing = max_tokens == 0
    if nothing and not echo:
        raise InvalidRequestError("max_tokens must be at least 1, unless echo is set", "max_tokens")
    wanted = DEFAULT_MAX_TOKENS if max_tokens is None else 1 if nothing else max_tokens
    params = body.sampling_params(app.spec.model, logprobs, wanted)
    if echo and logprobs is not None and params.prompt_logprobs is None:
        if body.stream:
            raise InvalidRequestError("echo with logprobs cannot be streamed", "echo")
        # Echoed logprobs cover the prompt, so the prompt's are asked for as well.
        params = msgspec.structs.replace(params, prompt_logprobs=logprobs)
    prompts = body.prompts(app.server_config.max_prompts_per_request)
    app.check_count(len(prompts) * params.n)
    identity = body.request_id or f"cmpl-{secrets.token_hex(14)}"
    works = []
    for place, prompt in enumerate(prompts):
        works.append(
            await app.client.preparer.prepare(
                prompt,
                params,
                request_id=identity if len(prompts) == 1 else f"{identity}-{place}",
                priority=integer("priority", body.priority) or 0,
                cache_salt=body.cache_salt or "",
                arrival_ns=arrival_ns,
                add_special_tokens=body.add_special_tokens is not False,
                timeout=body.timeout,
            )
        )
    texts = [_prompt_text(app, prompt[0]) for prompt in works] if echo else None
    answer = Answer(identity, app.spec.model.name, works, SHAPE, texts, body.include_usage, body.continuous_usage)
    if nothing:
        return await _prompt_only(app, answer, texts or [], logprobs)
    if body.stream:
        return await stream_answer(app, request, answer)

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        return _choice(app, body, texts, params.n, index, output, place)

    return await json_generation(app, answer, choice, "text_completion")


def _optional(entries: list[TokenLogprobs]) -> list[TokenLogprobs | None]:
    return [*entries]


def _prompt_text(app: App, work: Work) -> str:
    return work.prompt if work.prompt is not None else app.client.tokenizer.decode(work.prompt_ids, skip_special_tokens=False)


def _choice(
    app: App, body: CompletionRequest, texts: list[str] | None, n: int, index: int, output: RequestOutput, place: int
) -> dict[str, Any]:
    each = output.outputs[place]
    echo = texts[index // n] if texts is not None else ""
    logprobs = None
    if each.logprobs is not None:
        ids, entries = each.token_ids, _optional(each.logprobs)
        if texts is not None and output.prompt_logprobs is not None:
            ids, entries = output.prompt_token_ids + ids, output.prompt_logprobs + entries
        logprobs = legacy_logprobs(ids, entries, app.client.tokenizer, 0)
    choice = {
        "index": index,
        "text": echo + each.text,
        "logprobs": logprobs,
        "finish_reason": each.finish_reason,
        "stop_reason": each.stop_reason,
    }
    if body.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
    if body.return_token_ids:
        choice |= {"token_ids": each.token_ids, "prompt_token_ids": output.prompt_token_ids}
    return choice


def legacy_logprobs(ids: list[int], entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """OpenAI's columns. The chosen token is in top_logprobs with the very same number, which clients compare by equality."""
    tokens = [tokenizer.token_text(token) for token in ids]
    offsets, values, tops = [], [], []
    for token, text, entry in zip(ids, tokens, entries):
        offsets.append(offset)
        offset += len(text)
        values.append(None if entry is None else floor(entry[token].logprob))
        tops.append(None if entry is None else {each.decoded_token or "": floor(each.logprob) for each in reversed(entry.values())})
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


async def _prompt_only(app: App, answer: Answer, texts: list[str], logprobs: int | None) -> web.Response:
    """echo with max_tokens 0: the prompt and, if asked for, its logprobs. The token the engine makes for it is not shown nor counted."""
    outputs = await app.client.run(answer.prompts) if logprobs is not None else None
    choices: list[dict[str, Any]] = []
    for place, prompt in enumerate(answer.prompts):
        entries = outputs[place].prompt_logprobs if outputs is not None else None
        shown = legacy_logprobs(prompt[0].prompt_ids, entries, app.client.tokenizer, 0) if entries is not None else None
        for _ in prompt:
            choices.append({"index": len(choices), "text": texts[place], "logprobs": shown, "finish_reason": "length", "stop_reason": None})
    total = sum(len(prompt[0].prompt_ids) for prompt in answer.prompts)
    return json_answer(
        {
            "id": answer.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": answer.model,
            "choices": choices,
            "usage": {"prompt_tokens": total, "completion_tokens": 0, "total_tokens": total},
        }
    )
