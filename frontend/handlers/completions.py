"""POST /v1/completions: text in, text out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from frontend import beam_search, completing
from frontend.best_of import keep_best
from frontend.body import decoder, read_json
from frontend.generation import Answer, outputs_json, prompt_logprobs_json, stream_answer, usage_of
from frontend.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from frontend.schemas.completions import CompletionRequest
from frontend.schemas.numbers import integer
from frontend.sse import Entries, Usage, encode, prompt_text
from frontend.stream import Work
from frontend.token_logprobs import Wanted, floor, token_name
from frontend.tokenizer import Tokenizer
from ipc.errors import InvalidRequestError
from ipc.sampling_params import SamplingParams

if TYPE_CHECKING:
    from frontend.app import App

DEFAULT_MAX_TOKENS = 16
_DECODER = decoder(CompletionRequest)


class CompletionShape:
    """A choice of a text_completion chunk. as_ids: logprobs name tokens by their ids."""

    object = "text_completion"
    text_open = b'"text":"'
    text_close = b'","logprobs":'
    empty = b'"text":"","logprobs":'
    first: bytes | None = None
    prompt_in_choice = True

    def __init__(self, as_ids: bool = False) -> None:
        self._as_ids = as_ids

    def logprobs(self, tokenizer: Tokenizer, entries: Entries, wanted: Wanted, offset: int) -> bytes:
        ids = [token for token, _ in entries]
        return encode(legacy_logprobs(ids, [entry for _, entry in entries], tokenizer, offset, self._as_ids))


SHAPE, SHAPE_OF_IDS = CompletionShape(), CompletionShape(as_ids=True)


async def create(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    app.check_model(body.model)
    body.check(app.spec.config.scheduler.scheduling_policy)
    beams = body.beams()
    identity = body.request_id or f"cmpl-{secrets.token_hex(14)}"
    works = await _prepare(app, body, _params(app, body), identity, arrival_ns)
    tokenizer = app.client.tokenizer
    texts = [prompt_text(prompt[0], tokenizer) for prompt in works] if body.echo or body.return_prompt_text else []
    shape = SHAPE_OF_IDS if body.return_tokens_as_token_ids else SHAPE
    echo = texts if body.echo else None
    alone = body.max_tokens == 0
    answer = Answer(identity, app.spec.model.name, works, shape, echo, body.include_usage, body.continuous_usage, body.extras, alone)
    if body.stream:
        return await stream_answer(app, request, answer)
    if alone:
        return await _prompt_only(app, body, answer, texts)
    outputs = await beam_search.run(app.client, works, beams)
    usage, count = usage_of(outputs), body.count
    if count < len(works[0]):
        for output in outputs:
            keep_best(output, count, integer("logprobs", body.logprobs) is not None)

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        return _choice(tokenizer, body, texts[index // count] if texts else "", index, output, place)

    return outputs_json(answer, outputs, "text_completion", choice, usage)


def _params(app: App, body: CompletionRequest) -> SamplingParams:
    """The engine's parameters. Raises InvalidRequestError."""
    logprobs, max_tokens = integer("logprobs", body.logprobs), integer("max_tokens", body.max_tokens)
    if max_tokens == 0 and not body.echo:
        raise InvalidRequestError("max_tokens must be at least 1, unless echo is set", "max_tokens")
    if body.echo and body.suffix:
        raise InvalidRequestError("echo cannot be combined with suffix", "echo")
    if body.suffix and body.truncate_prompt_tokens is not None:
        raise InvalidRequestError("truncate_prompt_tokens cannot be combined with suffix", "truncate_prompt_tokens")
    pool = body.pool()
    # The best of several are found by their logprobs.
    wanted = 0 if logprobs is None and pool > body.count else logprobs
    params = body.sampling_params(app.spec.model, wanted, DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens or 1)
    changes: dict[str, Any] = {"n": pool}
    if body.echo and logprobs is not None and params.prompt_logprobs is None:
        # Echoed logprobs cover the prompt, so the prompt's are asked for as well.
        changes["prompt_logprobs"] = logprobs
    if body.suffix:
        changes["stop_token_ids"] = [*params.stop_token_ids, *app.middle.stop_token_ids]
    return msgspec.structs.replace(params, **changes)


async def _prepare(app: App, body: CompletionRequest, params: SamplingParams, identity: str, arrival_ns: int) -> list[list[Work]]:
    """For each prompt, its completions. Raises InvalidRequestError and admission's errors."""
    prompts = body.prompts(app.server_config.max_prompts_per_request)
    app.check_count(len(prompts) * params.n)
    works = []
    for place, prompt in enumerate(prompts):
        works.append(
            await app.client.preparer.prepare(
                await app.middle.ids(prompt, body.suffix) if body.suffix else prompt,
                params,
                request_id=identity if len(prompts) == 1 else f"{identity}-{place}",
                priority=integer("priority", body.priority) or 0,
                cache_salt=body.cache_salt or "",
                arrival_ns=arrival_ns,
                add_special_tokens=body.add_special_tokens is not False,
                timeout=body.timeout,
                truncation=body.truncation(),
            )
        )
    return works


def _optional(entries: list[TokenLogprobs]) -> list[TokenLogprobs | None]:
    return [*entries]


def _choice(tokenizer: Tokenizer, body: CompletionRequest, text: str, index: int, output: RequestOutput, place: int) -> dict[str, Any]:
    """text: the prompt's, where that is to be shown."""
    each = output.outputs[place]
    logprobs = None
    if each.logprobs is not None:
        ids, entries = each.token_ids, _optional(each.logprobs)
        if body.echo and output.prompt_logprobs is not None:
            ids, entries = output.prompt_token_ids + ids, output.prompt_logprobs + entries
        logprobs = legacy_logprobs(ids, entries, tokenizer, 0, bool(body.return_tokens_as_token_ids))
    choice = {
        "index": index,
        "text": text + each.text if body.echo else each.text,
        "logprobs": logprobs,
        "finish_reason": each.finish_reason,
        "stop_reason": each.stop_reason,
    }
    return choice | _about_prompt(body, text, output) | ({"token_ids": each.token_ids} if body.return_token_ids else {})


def _about_prompt(body: CompletionRequest, text: str, output: RequestOutput) -> dict[str, Any]:
    """What a client asked to be told of its prompt, in each choice as in vLLM."""
    found: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
    if body.return_token_ids:
        found["prompt_token_ids"] = output.prompt_token_ids
    if body.return_prompt_text:
        found["prompt_text"] = text
    return found


def legacy_logprobs(
    ids: list[int], entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer, offset: int, as_ids: bool = False
) -> dict[str, Any]:
    """OpenAI's columns. The chosen token is in top_logprobs with the very same number, which clients compare by equality."""
    texts = [tokenizer.token_text(token) for token in ids]
    tokens = [token_name(token) for token in ids] if as_ids else texts
    offsets, values, tops = [], [], []
    for token, text, entry in zip(ids, texts, entries):
        offsets.append(offset)
        offset += len(text)
        values.append(None if entry is None else floor(entry[token].logprob))
        tops.append(None if entry is None else _named(entry, as_ids))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _named(entry: TokenLogprobs, as_ids: bool) -> dict[str, float]:
    """By the tokens' names. The chosen token comes last, so that it wins over another of the same text."""
    return {token_name(token) if as_ids else each.decoded_token or "": floor(each.logprob) for token, each in reversed(entry.items())}


async def _prompt_only(app: App, body: CompletionRequest, answer: Answer, texts: list[str]) -> web.Response:
    """echo with max_tokens 0: the prompt and what is asked for of it. A token that the engine makes for it is neither shown nor counted."""
    wanted = body.logprobs is not None or body.prompt_logprobs is not None
    outputs = await completing.run(app.client, answer.prompts) if wanted else [_nothing(prompt) for prompt in answer.prompts]
    tokenizer, as_ids = app.client.tokenizer, bool(body.return_tokens_as_token_ids)
    usage = Usage(sum(len(prompt[0].prompt_ids) for prompt in answer.prompts))

    def choice(index: int, output: RequestOutput, place: int) -> dict[str, Any]:
        ids, entries = output.prompt_token_ids, output.prompt_logprobs
        shown = legacy_logprobs(ids, entries, tokenizer, 0, as_ids) if body.logprobs is not None and entries is not None else None
        text = texts[index // len(output.outputs)]
        made = {"index": index, "text": text, "logprobs": shown, "finish_reason": "length", "stop_reason": None}
        return made | _about_prompt(body, text, output) | ({"token_ids": []} if body.return_token_ids else {})

    return outputs_json(answer, outputs, "text_completion", choice, usage)


def _nothing(prompt: list[Work]) -> RequestOutput:
    """What a prompt gives that is not computed."""
    outputs = [CompletionOutput(work.index, "", [], finish_reason="length") for work in prompt]
    return RequestOutput(prompt[0].request_id, prompt[0].prompt, prompt[0].prompt_ids, None, outputs, finished=True)
