"""An Ollama request as a chat request, or its parameters alone for a raw prompt."""

from __future__ import annotations

import json
from typing import Any

from frontend.http_errors import not_supported
from frontend.schemas.chat import ChatMessage, ChatRequest
from frontend.schemas.numbers import integer
from frontend.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest, OllamaMessage, OllamaRequest, Options
from ipc.errors import InvalidRequestError

_LEVELS = ("low", "medium", "high")


def from_chat(body: OllamaChatRequest) -> ChatRequest:
    """The model's name is left to the caller. Raises InvalidRequestError naming the field, by Ollama's name."""
    messages: list[ChatMessage] = []
    for place, message in enumerate(body.messages or []):
        messages.append(_message(message, place, messages))
    request = _request(body, messages)
    if body.tools:
        request.tools = body.tools
        request.tool_choice = "auto"
    return request


def from_generate(body: OllamaGenerateRequest) -> ChatRequest:
    """Raises InvalidRequestError naming the field. With raw, the messages are only there to be replaced by the prompt as it is."""
    for name in ("template", "images"):
        if getattr(body, name):
            raise not_supported(f"{name} is not supported by this version of quire", name)
    for name in ("system", "context"):
        if body.raw and getattr(body, name):
            raise InvalidRequestError(f"raw leaves the prompt as it is, so there is no place for {name}", name)
    if body.context and body.suffix:
        raise InvalidRequestError("suffix asks for the middle of a text, which goes on from no context", "context")
    messages = [ChatMessage(role="system", content=body.system)] if body.system else []
    return _request(body, [*messages, ChatMessage(role="user", content=body.prompt or "")])


def _message(message: OllamaMessage, place: int, before: list[ChatMessage]) -> ChatMessage:
    at = f"messages[{place}]"
    if message.images:
        raise not_supported(f"{at}: images are not supported; this model reads text only", "messages")
    calls = [_call(call, f"call_{place}_{number}", at) for number, call in enumerate(message.tool_calls or [])] or None
    identity = message.tool_call_id
    if message.role == "tool" and identity is None:
        identity = _answered(message.tool_name, before)
    return ChatMessage(
        role=message.role,
        content=message.content if message.content is not None else "" if calls else None,
        reasoning_content=message.thinking or None,
        tool_calls=calls,
        tool_call_id=identity,
        name=message.tool_name if message.role == "tool" else None,
    )


def _call(call: dict[str, Any], identity: str, at: str) -> dict[str, Any]:
    """Ollama's calls have their arguments as an object, and an id only in newer versions."""
    function = call.get("function")
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
        raise InvalidRequestError(f"{at}: a tool call needs a function with a name, and an object as arguments", "messages")
    given = call.get("id")
    text = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": given if isinstance(given, str) and given else identity,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def _answered(name: str | None, before: list[ChatMessage]) -> str | None:
    """The id of the call that a result without one answers: the first of that name, or of any, that has no result yet."""
    results = {message.tool_call_id for message in before if message.role == "tool"}
    for message in before:
        for call in message.tool_calls or []:
            if call["id"] not in results and name in (None, call["function"]["name"]):
                return str(call["id"])
    return None


def _request(body: OllamaRequest, messages: list[ChatMessage]) -> ChatRequest:
    options = body.options or Options()
    _refuse(body, options)
    request = ChatRequest(
        messages=messages,
        max_tokens=_limit(options),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=options.stop or None,
        timeout=body.timeout,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
    )
    if isinstance(body.format, dict):
        request.response_format = {"type": "json_schema", "json_schema": {"name": "output", "schema": body.format, "strict": True}}
    elif body.format == "json":
        request.response_format = {"type": "json_object"}
    elif body.format:
        raise InvalidRequestError("format must be 'json' or a JSON schema", "format")
    if isinstance(body.think, str):
        if body.think not in _LEVELS:
            raise InvalidRequestError(f"think must be true, false, or one of {', '.join(_LEVELS)}", "think")
        request.reasoning_effort = body.think
    if body.think is not None:
        # Templates that know on and off only call it one of these.
        request.chat_template_kwargs = dict.fromkeys(("enable_thinking", "thinking"), bool(body.think))
    return request


def _refuse(body: OllamaRequest, options: Options) -> None:
    for name, harmless in (("mirostat", 0), ("tfs_z", 1), ("typical_p", 1)):
        if getattr(options, name) not in (None, harmless):
            raise not_supported(f"options.{name} is not supported", "options")


def _limit(options: Options) -> int | None:
    limit = integer("num_predict", options.num_predict)
    if limit is None or limit in (-1, -2):
        return None
    if limit <= 0:
        raise InvalidRequestError("options.num_predict must be at least 1, or -1 for no limit", "options")
    return limit
