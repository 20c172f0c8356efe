"""What a request's output must look like: as a user says it (StructuredOutputsParams), and as the scheduler compiles it (Grammar)."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from ipc.errors import InvalidRequestError

FIELD = "structured_outputs"
# The one that speaks of an answer's text only, and not of the calls that may come instead.
RESPONSE_FORMAT = "response_format"
MAX_CHOICES = 10_000
MAX_WHITESPACE_PATTERN = 256
# Names of what compiles grammars and computes masks; there is one, under its own name and vLLM's.
BACKENDS = ("auto", "llguidance", "guidance")


class GrammarKind(enum.IntEnum):
    """What Grammar.text is."""

    JSON_SCHEMA = 0  # a JSON schema; '{"type":"object"}' where any object will do
    REGEX = 1
    CHOICE = 2  # a JSON list of strings
    LARK = 3  # Lark, or GBNF, which is recognised by its ::=
    STRUCTURAL_TAG = 4  # JSON: {"triggers": [...], "structures": [{"begin", "schema", "end"}]}


class Grammar(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One constraint, ready to compile; equal grammars have equal fields.

    whitespace: for JSON, between tokens: '' is none, '*' is any amount, anything else a regex. param: the request's field that it came
    from, for error messages.
    """

    kind: GrammarKind
    text: str
    whitespace: str = ""
    param: str = FIELD

    @property
    def key(self) -> tuple[int, str, str]:
        """What a compiled grammar depends on."""
        return (self.kind, self.text, self.whitespace)


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True, omit_defaults=True):
    """Exactly one of json, regex, choice, grammar, json_object and structural_tag; names as vLLM has them.

    json: a JSON schema, as an object or as text. regex: the whole output matches it. choice: the output is one of these. grammar: in Lark
    or GBNF. json_object: any JSON object. structural_tag: free text in which given tags begin structures (docs/structured_output.md).
    disable_any_whitespace: JSON without blanks between its tokens, which is the default; False allows any amount.
    whitespace_pattern: a regex for them instead. backend: one of BACKENDS. blame: the field that error messages name.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None
    backend: str | None = None
    blame: str = FIELD

    def validate(self) -> StructuredOutputsParams:
        """Check all that can be known without compiling; returns self. Raises InvalidRequestError naming the field."""
        self.to_grammar()
        return self

    def to_grammar(self) -> Grammar:
        """The one constraint. Raises InvalidRequestError naming what is wrong."""
        param = self.blame
        check_backend(self.backend, param)
        given = [name for name in _KINDS if getattr(self, name) is not None and not (name == "json_object" and not self.json_object)]
        if len(given) != 1:
            said = f"got {' and '.join(given)}" if given else "got none of them"
            raise InvalidRequestError(f"{param} needs exactly one of {', '.join(_KINDS)}; {said}", param)
        name = given[0]
        whitespace = self._whitespace(name, param)
        if name == "json_object":
            return Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}', whitespace, param)
        return Grammar(_KINDS[name], _text(name, getattr(self, name), param), whitespace, param)

    def _whitespace(self, name: str, param: str) -> str:
        flexible, pattern = self.disable_any_whitespace, self.whitespace_pattern
        if flexible is not None and not isinstance(flexible, bool):
            raise InvalidRequestError(f"{param}: disable_any_whitespace must be true or false", param)
        if pattern is not None:
            if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_WHITESPACE_PATTERN or pattern == "*":
                raise InvalidRequestError(f"{param}: whitespace_pattern must be a regex of 1 to {MAX_WHITESPACE_PATTERN} characters", param)
            if flexible is not None:
                raise InvalidRequestError(f"{param}: whitespace_pattern and disable_any_whitespace contradict each other", param)
        if (pattern is not None or flexible is not None) and name not in ("json", "json_object", "structural_tag"):
            raise InvalidRequestError(f"{param}: whitespace options are for JSON, not for {name}", param)
        return pattern if pattern is not None else "*" if flexible is False else ""


def check_backend(name: Any, param: str) -> None:
    """Raise InvalidRequestError for a backend that is not there. param: the field that named it."""
    if name is not None and name not in BACKENDS:
        raise InvalidRequestError(
            f"{param}: there is no backend {name!r:.40} for structured output; there are {', '.join(BACKENDS)}", param
        )


_KINDS = {
    "json": GrammarKind.JSON_SCHEMA,
    "regex": GrammarKind.REGEX,
    "choice": GrammarKind.CHOICE,
    "grammar": GrammarKind.LARK,
    "json_object": GrammarKind.JSON_SCHEMA,
    "structural_tag": GrammarKind.STRUCTURAL_TAG,
}


def _text(name: str, value: Any, param: str) -> str:
    if name == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value) or "" in value:
            raise InvalidRequestError(f"{param}: choice must be a list of non-empty strings", param)
        if len(value) > MAX_CHOICES:
            raise InvalidRequestError(f"{param}: choice may have at most {MAX_CHOICES} entries, got {len(value)}", param)
        return _json(value, name, param)
    if name in ("json", "structural_tag"):
        if isinstance(value, str):
            value = _parse(value, name, param)
        if not isinstance(value, dict) and not (name == "json" and isinstance(value, bool)):
            raise InvalidRequestError(f"{param}: {name} must be a JSON object or its text", param)
        if name == "structural_tag" and isinstance(value, dict):
            value = _structures(value, param)
        return _json(value, name, param)
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{param}: {name} must be a non-empty string", param)
    return value


def _structures(value: dict[str, Any], param: str) -> dict[str, Any]:
    """The two wire shapes of structural tags (vLLM's first, and the `format` one that replaced it) as the first of them."""
    form = value.get("format")
    if isinstance(form, dict):
        if form.get("type") != "triggered_tags":
            raise InvalidRequestError(f"{param}: a structural tag's format must be of type triggered_tags", param)
        if unknown := sorted(set(form) - {"type", "triggers", "tags"}):
            raise InvalidRequestError(f"{param}: structural_tag's {', '.join(unknown)} is not supported", param)
        value = {"triggers": form.get("triggers"), "structures": [_structure(tag, param) for tag in _list(form.get("tags"), "tags", param)]}
    triggers, structures = _list(value.get("triggers"), "triggers", param), _list(value.get("structures"), "structures", param)
    if not all(isinstance(trigger, str) and trigger for trigger in triggers):
        raise InvalidRequestError(f"{param}: a structural tag's triggers must be non-empty strings", param)
    for each in structures:
        begin, end = (each.get("begin"), each.get("end")) if isinstance(each, dict) else (None, None)
        if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(each.get("schema"), (dict, bool)):
            raise InvalidRequestError(f"{param}: each structure of a structural tag needs begin, schema and end", param)
        if not any(begin.startswith(trigger) for trigger in triggers):
            raise InvalidRequestError(f"{param}: the structure that begins with {begin!r:.60} starts with none of the triggers", param)
    return {"triggers": triggers, "structures": [{name: each[name] for name in ("begin", "schema", "end")} for each in structures]}


def _structure(tag: Any, param: str) -> dict[str, Any]:
    content = tag.get("content") if isinstance(tag, dict) else None
    if not isinstance(content, dict) or content.get("type") != "json_schema":
        raise InvalidRequestError(f"{param}: a tag's content must be of type json_schema", param)
    return {"begin": tag.get("begin"), "schema": content.get("json_schema"), "end": tag.get("end")}


def _list(value: Any, name: str, param: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InvalidRequestError(f"{param}: a structural tag needs a non-empty list of {name}", param)
    return value


def _parse(text: str, name: str, param: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequestError(f"{param}: {name} is not valid JSON: {_short(error)}", param) from None


def _json(value: Any, name: str, param: str) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{param}: {name} cannot be written as JSON: {_short(error)}", param) from None


def _short(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
