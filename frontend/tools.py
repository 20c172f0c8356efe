"""The tools of a chat request: checked, and who may be called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from frontend.http_errors import not_supported
from ipc.errors import InvalidRequestError

MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_DESCRIPTION = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request says about tools, after checks.

    listed: as templates show them; empty if nothing may be called. schemas: by name of the callable tools, the JSON schema of their
    parameters. choice: 'auto' leaves it to the model, 'required' makes it call at least one of them. parallel: more than one call is fine.
    strict: names of the callable tools whose schema binds the model's arguments.
    """

    listed: list[dict[str, Any]]
    schemas: dict[str, Mapping[str, Any]]
    choice: Literal["none", "auto", "required"]
    parallel: bool
    strict: frozenset[str] = frozenset()


NO_TOOLS = Tools([], {}, "none", True)


def read_tools(tools: list[dict[str, Any]] | None, choice: Any, parallel: bool | None) -> Tools:
    """Raises InvalidRequestError for tools that are none, for choices that name no tool, and for what this version does not know."""
    if tools is None:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice needs tools", "tool_choice")
        return NO_TOOLS
    if not tools:
        raise InvalidRequestError("tools must not be an empty list", "tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"tools may have at most {MAX_TOOLS} entries, got {len(tools)}", "tools")
    schemas: dict[str, Mapping[str, Any]] = {}
    listed = []
    for place, tool in enumerate(tools):
        name, schema = _read_tool(f"tools[{place}]", tool)
        if name in schemas:
            raise InvalidRequestError(f"tools[{place}]: there are two tools of the name {name!r}", "tools")
        schemas[name] = schema
        listed.append(tool)
    mode, names = _read_choice(choice, schemas)
    if mode == "none":
        return NO_TOOLS
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        listed = [tool for tool in listed if tool["function"]["name"] in names]
    strict = frozenset(tool["function"]["name"] for tool in listed if tool["function"].get("strict")) & names
    return Tools(listed, {name: schemas[name] for name in schemas if name in names}, mode, parallel is not False, strict)


def _read_tool(at: str, tool: dict[str, Any]) -> tuple[str, Mapping[str, Any]]:
    kind = tool.get("type", "function")
    if kind != "function":
        raise not_supported(f"{at}: tools of type {kind!r:.40} are not supported, only functions are", "tools")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequestError(f"{at} needs a function", "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(f"{at}: a function's name has 1 to 64 letters, digits, _, . or -; got {name!r:.80}", "tools")
    if not isinstance(function.get("description") or "", str) or len(function.get("description") or "") > MAX_DESCRIPTION:
        raise InvalidRequestError(f"{at}: a description is a text of at most {MAX_DESCRIPTION} characters", "tools")
    if not isinstance(function.get("strict") or False, bool):
        raise InvalidRequestError(f"{at}: strict must be true or false", "tools")
    schema = function.get("parameters")
    if schema is None:
        schema = {}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object" or not isinstance(schema.get("properties") or {}, dict):
        raise InvalidRequestError(f"{at}: parameters must be the JSON schema of an object", "tools")
    if not _shallow(tool):
        raise InvalidRequestError(f"{at} is nested more than {MAX_DEPTH} levels deep", "tools")
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(f"{at}: parameters may have at most {MAX_SCHEMA_BYTES} bytes", "tools")
    return name, schema


def _shallow(value: Any) -> bool:
    """Whether it is nested at most MAX_DEPTH deep; what comes later walks it recursively."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level if isinstance(each, (dict, list)) for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return True
    return False


def _read_choice(choice: Any, schemas: Mapping[str, Any]) -> tuple[Literal["none", "auto", "required"], set[str]]:
    """The mode, and the tools it is about."""
    if choice is None:
        return "auto", set(schemas)
    if isinstance(choice, str):
        if choice == "any":  # Mistral's word
            choice = "required"
        if choice not in _CHOICES:
            raise InvalidRequestError(f"tool_choice must be one of {', '.join(_CHOICES)} or name a function", "tool_choice")
        return choice, set(schemas)
    if not isinstance(choice, dict):
        raise InvalidRequestError("tool_choice must be a string or an object", "tool_choice")
    kind = choice.get("type")
    if kind == "function":
        return "required", {_known(choice, schemas)}
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        allowed = inner.get("tools") if isinstance(inner, dict) else None
        mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
        if not isinstance(allowed, list) or not allowed or mode not in ("auto", "required"):
            raise InvalidRequestError("tool_choice: allowed_tools needs a mode, auto or required, and a list of tools", "tool_choice")
        return mode, {_known(each, schemas) for each in allowed}
    raise not_supported(f"tool_choice of type {kind!r:.40} is not supported", "tool_choice")


def _known(choice: Any, schemas: Mapping[str, Any]) -> str:
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequestError("tool_choice: a function is named as {'type': 'function', 'function': {'name': ...}}", "tool_choice")
    if name not in schemas:
        raise InvalidRequestError(f"tool_choice: there is no tool of the name {name!r:.80}", "tool_choice")
    return name
