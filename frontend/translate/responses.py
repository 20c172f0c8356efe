"""A request for a response as a chat request: items become messages."""

from __future__ import annotations

from typing import Any

from frontend.http_errors import not_supported
from frontend.schemas.chat import ChatMessage, ChatRequest
from frontend.schemas.numbers import integer
from frontend.schemas.responses import ResponsesRequest
from ipc.errors import InvalidRequestError

_TEXT_PARTS = ("input_text", "output_text", "text")
_SAME_FIELDS = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_regex",
    "stop_token_ids",
    "ignore_eos",
    "logit_bias",
    "priority",
    "cache_salt",
    "timeout",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "include_reasoning",
    "structured_outputs",
    "thinking_token_budget",
    "min_tokens",
    "bad_words",
    "allowed_token_ids",
)


def items_of(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The request's own input as items. Raises InvalidRequestError if there is none."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    if not body.input:
        raise InvalidRequestError("input must not be empty", "input")
    return body.input


def chat_request(body: ResponsesRequest, items: list[dict[str, Any]]) -> ChatRequest:
    """items: everything said so far, the request's own input last. Raises InvalidRequestError naming the field."""
    messages = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    for place, item in enumerate(items):
        _add(messages, item, f"input[{place}]")
    request = ChatRequest(messages=messages, **{name: getattr(body, name) for name in _SAME_FIELDS})
    request.max_completion_tokens = integer("max_output_tokens", body.max_output_tokens)
    if body.wants_logprobs:
        request.logprobs, request.top_logprobs = True, body.top_logprobs
    effort = (body.reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise InvalidRequestError("reasoning.effort must be a string", "reasoning")
    request.reasoning_effort = effort
    request.response_format = _format((body.text or {}).get("format"))
    if body.tools:
        request.tools = [_tool(tool, place) for place, tool in enumerate(body.tools)]
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function" and "function" not in choice:
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    request.tool_choice = choice
    return request


def _add(messages: list[ChatMessage], item: dict[str, Any], at: str) -> None:
    """Append what an item says. What the assistant says in several items in a row is one message, as templates expect."""
    kind = item.get("type", "message" if "role" in item else None)
    match kind:
        case "message":
            message = _message(item, at)
            last = messages[-1] if messages else None
            if last is not None and message.role == "assistant" and _unfinished(last):
                last.content = message.content
            else:
                messages.append(message)
        case "reasoning":
            parts = [part for name in ("content", "summary") for part in _list(item.get(name), at)]
            text = "\n".join(_texts(parts, at, ("reasoning_text", "summary_text")))
            if text:
                _assistant(messages).reasoning_content = text
        case "function_call":
            name, identity, arguments = item.get("name"), item.get("call_id"), item.get("arguments")
            if not (isinstance(name, str) and isinstance(identity, str) and isinstance(arguments, str)):
                raise InvalidRequestError(f"{at}: a function_call needs call_id, name and arguments", "input")
            last = _assistant(messages)
            call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
            last.tool_calls = [*(last.tool_calls or []), call]
        case "function_call_output":
            identity, output = item.get("call_id"), item.get("output")
            if not isinstance(identity, str) or not isinstance(output, (str, list)):
                raise InvalidRequestError(f"{at}: a function_call_output needs call_id and output", "input")
            text = output if isinstance(output, str) else "\n".join(_texts(output, at, _TEXT_PARTS))
            messages.append(ChatMessage(role="tool", tool_call_id=identity, content=text))
        case _:
            raise not_supported(f"{at}: an item of type {kind!r:.40} is not supported", "input")


def _unfinished(message: ChatMessage) -> bool:
    """An assistant's message that has thoughts or calls, but no text yet."""
    return message.role == "assistant" and not message.content and bool(message.reasoning_content or message.tool_calls)


def _assistant(messages: list[ChatMessage]) -> ChatMessage:
    """The assistant's message that is being put together, a fresh one if the last turn was not the assistant's."""
    if not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage(role="assistant", content=""))
    return messages[-1]


def _message(item: dict[str, Any], at: str) -> ChatMessage:
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        raise InvalidRequestError(f"{at}: role must be user, assistant, system or developer, not {role!r:.40}", "input")
    if isinstance(content, str):
        return ChatMessage(role=role, content=content)
    if not isinstance(content, list):
        raise InvalidRequestError(f"{at}: content must be a string or a list of parts", "input")
    return ChatMessage(role=role, content="\n".join(_texts(content, at, (*_TEXT_PARTS, "refusal"))))


def _list(value: Any, at: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequestError(f"{at}: content and summary must be lists", "input")
    return value


def _texts(parts: list[Any], at: str, kinds: tuple[str, ...]) -> list[str]:
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise not_supported(f"{at}: content of type {kind!r:.40} is not supported; this model reads text only", "input")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequestError(f"{at}: a content part of type {kind} needs its text", "input")
        found.append(text)
    return found


def _format(given: Any) -> dict[str, Any] | None:
    """text.format, which has the members of a JSON schema format side by side, where chat completions nest them."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise InvalidRequestError("text.format must be an object", "text")
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise not_supported(f"tools[{place}]: tools of type {tool.get('type')!r:.40} are not supported, only functions are", "tools")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def shortened(items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The same conversation without its first turns, longest first: each begins with a message of the user's, so that no result of a call
    is left without its call. What a system or developer says first stays."""
    lead = next((place for place, item in enumerate(items) if item.get("role") not in ("system", "developer")), len(items))
    starts = [place for place in range(lead + 1, len(items)) if items[place].get("role") == "user"]
    return [[*items[:lead], *items[start:]] for start in starts]
