"""An Anthropic request as a chat request."""

from __future__ import annotations

import json
from typing import Any

from frontend.http_errors import not_supported
from frontend.schemas.chat import ChatMessage, ChatRequest
from frontend.schemas.messages import InputMessage, MessagesRequest
from frontend.schemas.numbers import integer
from ipc.errors import InvalidRequestError

MIN_THINKING_BUDGET = 1024
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_UNUSED_EDITS = ("clear_thinking_20251015",)  # thinking of earlier turns is the chat template's business anyway


def chat_request(body: MessagesRequest) -> ChatRequest:
    """Raises InvalidRequestError naming the field, by Anthropic's name."""
    _refuse(body)
    if not body.messages:
        raise InvalidRequestError("messages must not be empty", "messages")
    messages: list[ChatMessage] = []
    if body.system:
        messages.append(ChatMessage(role="system", content=_texts(body.system, "system")))
    for place, message in enumerate(body.messages):
        _add(messages, message, place)
    last = messages[-1]
    prefilled = last.role == "assistant" and not last.tool_calls
    request = ChatRequest(
        messages=messages,
        model=body.model,
        max_tokens=integer("max_tokens", body.max_tokens),
        stop=body.stop_sequences or None,
        stop_regex=body.stop_regex,
        stream=body.stream,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        repetition_penalty=body.repetition_penalty,
        timeout=body.timeout,
        cache_salt=body.cache_salt,
        priority=body.priority,
        continue_final_message=prefilled or None,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    _think(request, body)
    _shape_output(request, body)
    _use_tools(request, body)
    return request


def _refuse(body: MessagesRequest) -> None:
    body.refuse()
    for name in ("container", "mcp_servers"):
        if getattr(body, name):
            raise not_supported(f"{name} is not supported: nothing is run outside of the model", name)
    edits = (body.context_management or {}).get("edits") if isinstance(body.context_management, dict) else body.context_management
    if edits and not (isinstance(edits, list) and all(isinstance(edit, dict) and edit.get("type") in _UNUSED_EDITS for edit in edits)):
        raise not_supported("context_management is not supported by this version of quire", "context_management")


def _add(messages: list[ChatMessage], message: InputMessage, place: int) -> None:
    """Append one turn; turns of the same role that follow one another are one turn, as Anthropic has it."""
    at = f"messages[{place}]"
    match message.role:
        case "user":
            found = _user(message.content, at)
        case "assistant":
            found = [_assistant(message.content, at)]
        case "system":
            found = [ChatMessage(role="system", content=_texts(message.content, at))]
        case _:
            raise InvalidRequestError(f"{at}: role must be 'user' or 'assistant', not {message.role!r:.40}", "messages")
    for new in found:
        last = messages[-1] if messages else None
        if last is None or last.role != new.role or new.role == "tool":
            messages.append(new)
            continue
        last.content = "\n".join(each for each in (_plain(last), _plain(new)) if each)
        last.tool_calls = [*(last.tool_calls or []), *(new.tool_calls or [])] or None
        last.reasoning_content = "\n".join(filter(None, (last.reasoning_content, new.reasoning_content))) or None


def _plain(message: ChatMessage) -> str:
    return message.content if isinstance(message.content, str) else ""


def _user(content: str | list[dict[str, Any]], at: str) -> list[ChatMessage]:
    """Text, and results of tools, in their order."""
    if isinstance(content, str):
        return [ChatMessage(role="user", content=content)]
    found: list[ChatMessage] = []
    texts: list[str] = []
    for block in content:
        if block.get("type") != "tool_result":
            texts.append(_text(block, at))
            continue
        if texts:
            found.append(ChatMessage(role="user", content="\n".join(texts)))
            texts = []
        found.append(_tool_result(block, at))
    if texts or not found:
        found.append(ChatMessage(role="user", content="\n".join(texts)))
    return found


def _tool_result(block: dict[str, Any], at: str) -> ChatMessage:
    identity, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(identity, str) or not identity:
        raise InvalidRequestError(f"{at}: a tool_result needs its tool_use_id", "messages")
    text = _texts(content, at) if content else ""
    if block.get("is_error"):
        text = f"Error: {text}" if text else "Error"
    return ChatMessage(role="tool", tool_call_id=identity, content=text)


def _assistant(content: str | list[dict[str, Any]], at: str) -> ChatMessage:
    if isinstance(content, str):
        return ChatMessage(role="assistant", content=content)
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for block in content:
        match block.get("type"):
            case "thinking":
                if isinstance(block.get("thinking"), str):
                    thoughts.append(block["thinking"])
            case "redacted_thinking":
                pass
            case "tool_use":
                name, identity, given = block.get("name"), block.get("id"), block.get("input")
                if not isinstance(name, str) or not isinstance(identity, str) or not isinstance(given, dict):
                    raise InvalidRequestError(f"{at}: a tool_use block needs id, name and an object as input", "messages")
                function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
                calls.append({"id": identity, "type": "function", "function": function})
            case _:
                texts.append(_text(block, at))
    return ChatMessage(role="assistant", content="".join(texts), tool_calls=calls or None, reasoning_content="\n".join(thoughts) or None)


def _texts(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidRequestError(f"{at}: content must be a string or a list of blocks", at.partition("[")[0])
    return "\n".join(_text(block, at) for block in content)


def _text(block: dict[str, Any], at: str) -> str:
    kind = block.get("type")
    field = at.partition("[")[0]
    if kind != "text":
        raise not_supported(f"{at}: a block of type {kind!r:.40} is not supported here; this model reads text only", field)
    if not isinstance(block.get("text"), str):
        raise InvalidRequestError(f"{at}: a text block needs its text", field)
    return str(block["text"])


def _think(request: ChatRequest, body: MessagesRequest) -> None:
    """thinking and output_config.effort, as the chat template's switches."""
    effort = (body.output_config or {}).get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise InvalidRequestError(f"output_config.effort must be one of {', '.join(_EFFORTS)}", "output_config")
        request.reasoning_effort = effort
    if body.thinking is None:
        return
    kind, budget = body.thinking.get("type"), body.thinking.get("budget_tokens")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise InvalidRequestError("thinking.type must be enabled, disabled, adaptive or between_tools", "thinking")
    if kind == "enabled":
        limit = integer("max_tokens", body.max_tokens)
        if type(budget) is not int or budget < MIN_THINKING_BUDGET or (limit is not None and budget >= limit):
            raise InvalidRequestError(
                f"thinking.budget_tokens must be an integer of at least {MIN_THINKING_BUDGET} and less than max_tokens", "thinking"
            )
        request.thinking_token_budget = budget
    if kind in ("enabled", "disabled"):
        # Templates that know on and off only call it one of these.
        switch = dict.fromkeys(("enable_thinking", "thinking"), kind == "enabled")
        request.chat_template_kwargs = {**switch, **(request.chat_template_kwargs or {})}


def _shape_output(request: ChatRequest, body: MessagesRequest) -> None:
    wanted = (body.output_config or {}).get("format") or body.output_format
    if wanted is None:
        return
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise InvalidRequestError("output_config.format must be {'type': 'json_schema', 'schema': {...}}", "output_config")
    request.response_format = {"type": "json_schema", "json_schema": {"name": "output", "schema": wanted["schema"], "strict": True}}


def _use_tools(request: ChatRequest, body: MessagesRequest) -> None:
    if not body.tools:
        if body.tool_choice and body.tool_choice.get("type") not in ("auto", "none"):
            raise InvalidRequestError("tool_choice needs tools", "tool_choice")
        return
    request.tools = [_tool(tool, place) for place, tool in enumerate(body.tools)]
    choice = body.tool_choice or {"type": "auto"}
    kind, name = choice.get("type"), choice.get("name")
    if kind == "tool" and isinstance(name, str):
        request.tool_choice = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _CHOICES:
        request.tool_choice = _CHOICES[kind]
    else:
        raise InvalidRequestError("tool_choice.type must be auto, any, none, or tool with a name", "tool_choice")
    if choice.get("disable_parallel_tool_use"):
        request.parallel_tool_calls = False


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    at = f"tools[{place}]"
    if tool.get("type") not in (None, "custom"):
        raise not_supported(f"{at}: a tool of type {tool['type']!r:.60} runs at Anthropic and not here", "tools")
    schema = tool.get("input_schema")
    if not isinstance(tool.get("name"), str) or not isinstance(schema, dict):
        raise InvalidRequestError(f"{at}: a tool needs a name and an input_schema", "tools")
    function = {"name": tool["name"], "parameters": schema}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}
