"""A tokenizer's own description of how its model answers: the `response_template` of tokenizer_config.json (Transformers 5.13 and later).

It says by what marks thoughts and tool calls are found. What it says of the usual shapes is read into the formats that the splitter works
from, so that such answers stream like all others. Its regular expressions are read as texts with blanks and names between; they are never
run over what a model writes. What cannot be read so is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.output_split.calls import JsonCalls
from frontend.output_split.formats import ReasoningFormat, ToolFormat
from frontend.output_split.tagged_calls import TaggedCalls

NAMES = ("hf", "response_template")
_THOUGHTS = ("thinking", "reasoning_content", "reasoning")
_PLACEHOLDER = re.compile(r"\{(?:content\.)?(\w+)\}")
# A named group of any word, a blank or line break (optional or not), one of the usual "anything" groups, an escaped or a plain character.
_PIECE = re.compile(
    r"\(\?P<(?P<name>\w+)>(?:\[[^\]]*\]|\\w|\.)[+*]\??\)|(?P<blank>(?:\\s|\\n)[*+?]?)|\\(?P<escaped>[^\w\s])|(?P<plain>[^\\.^$*+?{}\[\]|()])"
)


@dataclass(frozen=True, slots=True)
class OwnFormats:
    """What could be read. why_not: for what could not, the reason, by 'tools' and 'reasoning'."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    why_not: Mapping[str, str]


class _Unclear(Exception):
    """This part of a template says something that no format here can say."""


def read(template: Any) -> OwnFormats:
    """template: the value in tokenizer_config.json, None if there is none."""
    fields = template.get("fields") if isinstance(template, dict) else None
    if not isinstance(fields, dict) or template.get("version", 1) != 1:
        why = "the tokenizer has no response_template" if template is None else "the tokenizer's response_template is of another version"
        return OwnFormats(None, None, {"tools": why, "reasoning": why})
    why_not: dict[str, str] = {}
    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    try:
        tools = _tools(_field(fields, ("tool_calls",)))
    except _Unclear as error:
        why_not["tools"] = f"the tokenizer's response_template cannot be followed: {error}"
    try:
        reasoning = _reasoning(_field(fields, _THOUGHTS))
    except _Unclear as error:
        why_not["reasoning"] = f"the tokenizer's response_template cannot be followed: {error}"
    return OwnFormats(tools, reasoning, why_not)


def _field(fields: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        found = fields.get(name)
        if isinstance(found, dict):
            return found
    raise _Unclear(f"it has no field {' or '.join(names)}")


def _reasoning(field: Mapping[str, Any]) -> ReasoningFormat:
    opens, closes = _marks(field, "open"), _marks(field, "close")
    if len(opens) != 1 or len(closes) != 1 or field.get("content", "text") != "text":
        raise _Unclear("its thoughts are not text between one mark and another")
    return ReasoningFormat(opens[0], closes[0])


def _tools(field: Mapping[str, Any]) -> ToolFormat:
    kind = field.get("content", "text")
    if kind == "json" and not field.get("content_args"):
        opens = _marks(field, "open")
        return ToolFormat(_json_calls(field), opens, _marks(field, "close"), bare=not opens)
    if kind == "xml-inline":
        return _tagged(field)
    raise _Unclear(f"its calls are of the kind {kind!r:.40} with arguments of its own")


def _marks(field: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts that open or close a field; none for a field that opens by itself or ends with the answer."""
    given = field.get(name)
    if given is not None:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise _Unclear(f"'{name}' is not a text")
        return tuple(text.strip() for text in texts)
    pattern = field.get(f"{name}_pattern")
    if pattern is None:
        return ()
    literals, names = _pieces(pattern, f"{name}_pattern")
    if names or len(literals) != 1:
        raise _Unclear(f"'{name}_pattern' is more than one text")
    return (literals[0],)


def _json_calls(field: Mapping[str, Any]) -> JsonCalls:
    """By what keys a call's name and arguments go."""
    transform = field.get("transform")
    if isinstance(transform, list) and len(transform) == 1:
        transform = transform[0]
    function = transform.get("function", transform) if isinstance(transform, dict) else transform
    if function is None or function == "{content}":
        return JsonCalls()
    if isinstance(function, dict):
        keys = [_PLACEHOLDER.fullmatch(str(function.get(name, ""))) for name in ("name", "arguments")]
        if keys[0] is not None and keys[1] is not None:
            return JsonCalls((keys[0].group(1),), (keys[1].group(1),))
    raise _Unclear("'transform' does not say which of a call's keys are its name and its arguments")


def _tagged(field: Mapping[str, Any]) -> ToolFormat:
    """<section> <function=NAME> <parameter=KEY> VALUE </parameter> ... </function> </section>, whatever the tags are."""
    opening, names = _pieces(field.get("open_pattern"), "open_pattern")
    if names != ["name"] or len(opening) not in (2, 3):
        raise _Unclear("'open_pattern' does not hold a function's name between two texts")
    *section, before, after = opening
    arguments = field.get("content_args")
    tags, names = _pieces(arguments.get("tag_pattern") if isinstance(arguments, dict) else None, "tag_pattern")
    if names != ["key", "value"] or len(tags) != 3:
        raise _Unclear("'tag_pattern' does not hold a key and a value between texts")
    close = field.get("close_pattern")
    ends = _pieces(close, "close_pattern")[0] if close is not None else list(_marks(field, "close"))
    tag = re.match(r"<(\w[\w:]*)", before)
    function_end = ends[0] if len(ends) == 2 or not section else f"</{tag.group(1)}>" if tag else ""
    if not ends or not function_end:
        raise _Unclear("it does not say how a call ends")
    payload = TaggedCalls(before, after, tags[0], (tags[1],), tags[2], function_end, newlines=True)
    return ToolFormat(payload, tuple(section) or (before,), (ends[-1],)) if section else ToolFormat(payload, bare=True)


def _pieces(pattern: Any, name: str) -> tuple[list[str], list[str]]:
    """A regular expression as the texts in it, in order, and the names of the groups between them. Blanks between texts are optional."""
    if not isinstance(pattern, str):
        raise _Unclear(f"'{name}' is missing")
    literals, names, at, text = [], [], 0, ""
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if piece is None:
            raise _Unclear(f"'{name}' is a regular expression of a kind that is not read here")
        at = piece.end()
        if piece["name"] is not None or piece["blank"] is not None:
            literals += [text] if text else []
            names += [piece["name"]] if piece["name"] is not None else []
            text = ""
        else:
            text += piece["escaped"] or piece["plain"]
    return [*literals, *([text] if text else [])], names
