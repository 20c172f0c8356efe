"""Ollama's API: /api/chat, /api/generate, and what its clients ask about models."""

from __future__ import annotations

import asyncio
import datetime
import functools
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from frontend import model_files
from frontend.body import decoder, read_json
from frontend.conversation import check_chat, prepare_chat
from frontend.field_names import in_terms_of
from frontend.generation import json_answer
from frontend.http_errors import Dialect, HttpError
from frontend.output_split import Delta, Kind
from frontend.part_stream import Outcome, Part, collect_parts, send_parts, text_of
from frontend.preparation import check_ids
from frontend.schemas.chat import ChatRequest
from frontend.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest, ShowRequest, keep_alive_seconds
from frontend.sse import encode
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from frontend.translate import ollama as translate
from ipc.errors import InvalidRequestError

if TYPE_CHECKING:
    from frontend.app import App

_CHAT, _GENERATE, _SHOW = decoder(OllamaChatRequest), decoder(OllamaGenerateRequest), decoder(ShowRequest)
HEADERS = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_NAMES = {
    "max_tokens": "options.num_predict",
    "reasoning_effort": "think",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    **{
        name: f"options.{name}"
        for name in ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop")
    },
}
NEVER = "9999-12-31T23:59:59Z"


@in_terms_of(_NAMES)
async def chat(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    # curl sends -d as a form unless told otherwise, and Ollama's own examples do not tell it.
    body = await read_json(request, _CHAT, app.server_config.max_body_bytes, any_type=True)
    script = OllamaScript(app.spec.model.name, chat=True)
    check_model(app, body.model)
    alive = keep_alive_seconds(body.keep_alive)
    if not body.messages:
        return _nothing(script, alive)
    chat_request = translate.from_chat(body)
    [work] = await prepare_chat(app, chat_request, _identity(), arrival_ns)
    return await _answer(app, request, body, work, script)


@in_terms_of({**_NAMES, "messages": "prompt"})
async def generate(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """One prompt: as a user's message, or as it is with `raw`; after what `context` holds. Raises as `chat` does."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _GENERATE, app.server_config.max_body_bytes, any_type=True)
    script = OllamaScript(app.spec.model.name, chat=False)
    check_model(app, body.model)
    chat_request, alive = translate.from_generate(body), keep_alive_seconds(body.keep_alive)
    check_ids("context", body.context or [], app.spec.model.vocab_size)
    if not body.prompt:
        return _nothing(script, alive)
    if body.suffix or body.raw or not app.client.tokenizer.has_chat_template:
        [work] = await _raw(app, body, chat_request, arrival_ns)
    else:
        [work] = await prepare_chat(app, chat_request, _identity(), arrival_ns, body.context or ())
    if not body.raw:
        script.context = lambda outcome: [*work.prompt_ids, *_said(app.client.tokenizer, outcome)]
    return await _answer(app, request, body, work, script)


async def _raw(app: App, body: OllamaGenerateRequest, chat_request: ChatRequest, arrival_ns: int) -> list[Work]:
    if body.system:
        raise InvalidRequestError("a prompt that goes to the model as it is has no place for system", "system")
    params = check_chat(app, chat_request)
    app.check_count(1)
    prompt: str | list[int] = body.prompt or ""
    if body.context:
        prompt = [*body.context, *await app.client.tokenizer.encode_soon(body.prompt or "", add_special_tokens=False)]
    if body.suffix:
        prompt = await app.middle.ids(prompt, body.suffix)
        params = msgspec.structs.replace(params, stop_token_ids=[*params.stop_token_ids, *app.middle.stop_token_ids])
    return await app.client.preparer.prepare(prompt, params, request_id=_identity(), arrival_ns=arrival_ns, timeout=body.timeout)


async def _answer(app: App, request: web.BaseRequest, body: OllamaRequest, work: Work, script: OllamaScript) -> web.StreamResponse:
    if body.stream is not False:
        return await send_parts(app, request, work, script, HEADERS)
    parts, outcome = await collect_parts(app, work)
    return json_answer(script.whole(parts) | script.end(outcome))


def _nothing(script: OllamaScript, alive: float | None) -> web.Response:
    """A request without a prompt asks Ollama to load the model, or with keep_alive 0 to unload it. Here it is loaded, and stays so."""
    return json_answer(script.line("content", "") | {"done": True, "done_reason": "unload" if alive == 0 else "load"})


def _said(tokenizer: Tokenizer, outcome: Outcome) -> Sequence[int]:
    """The answer's tokens, up to the stop string that ended it."""
    stop = outcome.stop_string
    if stop is None:
        return outcome.ids
    text = tokenizer.decode(outcome.ids, skip_special_tokens=False)
    return tokenizer.encode(text[: text.rindex(stop)] if stop in text else text, add_special_tokens=False)


def _identity() -> str:
    return f"ollama-{secrets.token_hex(12)}"


def check_model(app: App, name: str) -> None:
    """Raises HttpError 404; names may carry Ollama's default tag."""
    served = app.spec.model.name
    app.check_model(served if name == f"{served}:latest" else name, required=True)


class OllamaScript:
    """Lines of JSON. Calls go out whole, each in a line of its own."""

    numbered = False

    def __init__(self, model: str, chat: bool) -> None:
        """chat: pieces are in a message, else beside it."""
        self._model, self._chat = model, chat
        self._kind: Kind | None = None
        self._call = Delta(Kind.CALL)
        self.logprobs: list[dict[str, Any]] = []
        self.context: Callable[[Outcome], list[int]] | None = None  # tokens of the conversation with this answer, where clients are told

    def line(self, name: str, value: Any) -> dict[str, Any]:
        """A line whose message has `value` as its content, thinking or tool_calls."""
        answer: dict[str, Any] = {"model": self._model, "created_at": _now()}
        if self._chat:
            return answer | {"message": {"role": "assistant", "content": "", name: value}, "done": False}
        return answer | {"response": "", ("response" if name == "content" else name): value, "done": False}

    def whole(self, parts: list[Part]) -> dict[str, Any]:
        """Everything in one line."""
        texts = {kind: "".join(part.text for part in parts if part.kind is kind) for kind in (Kind.CONTENT, Kind.REASONING)}
        answer = self.line("content", texts[Kind.CONTENT])
        logprobs = [each for part in parts for each in part.logprobs]
        if logprobs:
            answer["logprobs"] = logprobs
        extras: dict[str, Any] = {"thinking": texts[Kind.REASONING]} if texts[Kind.REASONING] else {}
        calls = [_call(part.id, part.name, part.text) for part in parts if part.kind is Kind.ARGUMENTS]
        if calls:
            extras["tool_calls"] = calls
        (answer["message"] if self._chat else answer).update(extras)
        return answer

    def end(self, outcome: Outcome) -> dict[str, Any]:
        """The members of the last line."""
        context = {} if self.context is None else {"context": self.context(outcome)}
        return context | {
            "done": True,
            "done_reason": "length" if outcome.finish_reason == "length" else "stop",
            "total_duration": outcome.prompt_ns + outcome.output_ns,
            "load_duration": 0,
            "prompt_eval_count": outcome.input_tokens,
            "prompt_eval_duration": outcome.prompt_ns,
            "eval_count": outcome.output_tokens,
            "eval_duration": outcome.output_ns,
        }

    def opening(self) -> bytes:
        return b""

    def turn(self, delta: Delta, body: bytes) -> bytes:
        ended = self._end_call(body)
        self._kind = Kind.ARGUMENTS if delta.kind is Kind.CALL else delta.kind
        self._call = delta
        return ended

    def around(self) -> tuple[bytes, bytes] | None:
        if self._kind is Kind.ARGUMENTS:
            return None
        name = "content" if self._kind is Kind.CONTENT else "thinking"
        line = self.line(name, _MARK)
        if self.logprobs and self._kind is Kind.CONTENT:
            line["logprobs"] = self.logprobs
        head, tail = encode(line).split(_MARK.encode())
        self.logprobs.clear()
        return head, tail + b"\n"

    def closing(self, body: bytes, outcome: Outcome) -> bytes:
        return self._end_call(body) + encode(self.line("content", "") | self.end(outcome)) + b"\n"

    def failure(self, error: HttpError) -> bytes:
        return error.body(Dialect.OLLAMA) + b"\n"

    def _end_call(self, body: bytes) -> bytes:
        if self._kind is not Kind.ARGUMENTS:
            return b""
        return encode(self.line("tool_calls", [_call(self._call.id, self._call.name, text_of(body))])) + b"\n"


_MARK = "\ue000\ue001"


def _call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    """Arguments are an object here; an answer that was cut in the middle of them has none."""
    try:
        found = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        found = {}
    return {"id": identity, "function": {"name": name, "arguments": found if isinstance(found, dict) else {}}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


# models


async def tags(app: App, _request: web.BaseRequest) -> web.Response:
    return json_answer({"models": [_card(app, await _files(app.spec.model.path))]})


async def running(app: App, _request: web.BaseRequest) -> web.Response:
    """The one model, which stays loaded."""
    files = await _files(app.spec.model.path)
    card = _card(app, files)
    del card["modified_at"]
    vram = files.size if app.spec.device == "cuda" else 0
    return json_answer({"models": [card | {"expires_at": NEVER, "size_vram": vram, "context_length": app.spec.model.max_model_len}]})


async def show(app: App, request: web.BaseRequest) -> web.Response:
    """Raises HttpError 404 for another model."""
    body = await read_json(request, _SHOW, app.server_config.max_body_bytes, any_type=True)
    check_model(app, body.model or body.name or "")
    model, files = app.spec.model, await _files(app.spec.model.path)
    family = _family(app)
    source = app.client.tokenizer.template_source
    return json_answer(
        {
            "modelfile": f"FROM {model.name}\n",
            "parameters": "\n".join(f"{name} {value:g}" for name, value in model.generation_defaults.items()),
            "template": source,
            "details": _details(app, files),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": files.parameters,
                f"{family}.context_length": model.max_model_len,
                f"{family}.embedding_length": model.hidden_size,
                f"{family}.vocab_size": model.vocab_size,
            },
            "capabilities": [
                "completion",
                "embedding",
                *(["tools"] if "tools" in source else []),
                *(["insert"] if app.middle.known else []),
                *(["thinking"] if app.client.preparer.formats.reasoning is not None else []),
            ],
            "modified_at": _time(files.modified),
        }
    )


async def version(app: App, _request: web.BaseRequest) -> web.Response:
    return json_answer({"version": app.version})


def _card(app: App, files: model_files.ModelFiles) -> dict[str, Any]:
    name = app.spec.model.name
    return {
        "name": name,
        "model": name,
        "modified_at": _time(files.modified),
        "size": files.size,
        "digest": files.digest,
        "details": _details(app, files),
    }


def _details(app: App, files: model_files.ModelFiles) -> dict[str, Any]:
    family = _family(app)
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": files.parameter_size,
        "quantization_level": files.dtype,
    }


def _family(app: App) -> str:
    """'llama' of LlamaForCausalLM."""
    return app.spec.model.architecture.partition("For")[0].lower()


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


async def _files(path: str) -> model_files.ModelFiles:
    return await asyncio.get_running_loop().run_in_executor(None, _read_once, path)


@functools.cache
def _read_once(path: str) -> model_files.ModelFiles:
    return model_files.read(os.path.abspath(path))
