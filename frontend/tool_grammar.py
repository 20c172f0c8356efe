"""Grammars that make a model's tool calls valid: names that exist, arguments by their schemas, markers where they belong.

Written in llguidance's Lark dialect (its docs/syntax.md): %json embeds a schema, <[7]> is the token with id 7.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from frontend.output_split.calls import HeadedCalls, JsonCalls
from frontend.output_split.formats import ReasoningFormat, ToolFormat
from frontend.tool_parsers import TOOL_PARSERS
from ipc.grammar import Grammar, GrammarKind

MAX_CALLS = 16
FALLBACK = TOOL_PARSERS["hermes"]
# Models differ in where they put blanks; one at most, since weak ones fill any room with them.
_SCHEMA_OPTIONS = {"lenient": False, "coerce_one_of": False, "whitespace_pattern": " ?"}
_BRACKETS = re.compile(r"(<[^<>]+>)")
_TEXT = r"/(.|\n)*/"

# Id of the token that a text is, if it is an added token, which models write as one and grammars see as one.
TokenId = Callable[[str], int | None]


def forced_format(tools: ToolFormat | None) -> ToolFormat:
    """The format that calls are written in when a grammar makes the model call: its own where that is JSON, else hermes's."""
    if tools is not None and isinstance(tools.payload, (JsonCalls, HeadedCalls)):
        return tools
    return FALLBACK


def forced(
    tools: ToolFormat,
    schemas: Mapping[str, Mapping[str, Any]],
    parallel: bool,
    reasoning: ReasoningFormat | None,
    opened: bool,
    token_id: TokenId,
) -> str:
    """The grammar of an answer that is one call or more, and reasoning before it where the model reasons.

    tools: of `forced_format`. opened: the prompt ends inside of reasoning.
    """
    rules = _Rules(tools, schemas, token_id)
    return f"start: {rules.lead(reasoning, opened)}{rules.all_calls(parallel)}\n{rules.text}"


def answer_or_calls(
    given: Grammar,
    tools: ToolFormat | None,
    schemas: Mapping[str, Mapping[str, Any]],
    parallel: bool,
    reasoning: ReasoningFormat | None,
    opened: bool,
    token_id: TokenId,
) -> str | None:
    """The grammar of an answer that keeps to a JSON schema, or makes calls instead; before either, reasoning that the prompt has opened.

    None where `given` is no JSON schema, or calls are not JSON after a marker: bare ones begin as a document does, and llguidance's
    lexer, being greedy, would go on with the longer of the two.
    """
    if given.kind != GrammarKind.JSON_SCHEMA or tools is None or tools.bare or forced_format(tools) is not tools:
        return None
    rules = _Rules(tools, schemas, token_id)
    lead = rules.lead(reasoning, opened) if opened else ""
    return f"start: {lead}(answer | calls)\nanswer: {_answer(given)}\ncalls: {rules.all_calls(parallel)}\n{rules.text}"


def lazy(
    tools: ToolFormat | None,
    schemas: Mapping[str, Mapping[str, Any]],
    parallel: bool,
    reasoning: ReasoningFormat | None,
    token_id: TokenId,
) -> str | None:
    """The grammar of free text in which calls, if there are any, are valid. None where the format does not tell them from text:
    its calls must begin with an added token."""
    if tools is None or not isinstance(tools.payload, (JsonCalls, HeadedCalls)) or tools.bare or token_id(tools.begin[0]) is None:
        return None
    rules = _Rules(tools, schemas, token_id)
    begin, end, between = rules.section()
    inner = f"({between} one_call)" if tools.end and begin not in between else ""
    section = f"{begin} one_call {inner + '* ' if inner and parallel else ''}{end}"
    thoughts = "".join(
        f" | {rules.marker(marker)}"
        for marker in (reasoning.markers if reasoning is not None else ())
        if marker and token_id(marker) is not None
    )
    free = f"free: (/(.|\\n)+/{thoughts})*"
    count = f"(section free){{0,{MAX_CALLS if parallel else 1}}}"
    return f"start: free {count}\nsection: {section}\n{free}\n{rules.text}"


def after_reasoning(given: Grammar, reasoning: ReasoningFormat, token_id: TokenId) -> str | None:
    """The grammar of an answer that goes on reasoning, ends that, and then keeps to a JSON schema; None for other kinds of grammar."""
    if given.kind != GrammarKind.JSON_SCHEMA:
        return None
    rules = _Rules(FALLBACK, {}, token_id)
    return f"start: {rules.lead(reasoning, opened=True)}answer\nanswer: {_answer(given)}\n{rules.text}"


def _answer(given: Grammar) -> str:
    """A document of the schema, as the one that is asked for alone has to be."""
    schema = json.loads(given.text)
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": False, "whitespace_flexible": given.whitespace == "*"}
    if given.whitespace not in ("", "*"):
        options["whitespace_pattern"] = given.whitespace
    return f"%json {_json({**({} if schema is True else schema), 'x-guidance': options})}"


class _Rules:
    """Rules of one format; `text` has them all, `one_call` is a call of any of the tools."""

    def __init__(self, tools: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], token_id: TokenId) -> None:
        self._tools, self._token_id = tools, token_id
        self._rules: list[str] = []
        names = []
        for number, (name, schema) in enumerate(schemas.items()):
            names.append(f"call_{number}")
            self._rules.append(f"call_{number}: {self._call(name, number)}")
            self._rules.append(f"arguments_{number}: %json {_schema(schema)}")
        if names:
            self._rules.append(f"one_call: {' | '.join(names)}")

    @property
    def text(self) -> str:
        return "\n".join(self._rules) + "\n"

    def marker(self, text: str) -> str:
        """A marker as the model writes it: as tokens where it has tokens for it or for its parts in angle brackets."""
        pieces = [text] if self._token_id(text) is not None else [piece for piece in _BRACKETS.split(text) if piece]
        tokens = [(piece, self._token_id(piece)) for piece in pieces]
        return " ".join(_quoted(piece) if token is None else f"<[{token}]>" for piece, token in tokens)

    def up_to(self, rule: str, end: str) -> str:
        """Any text and then `end`."""
        if self._token_id(end) is not None:
            self._rules.append(f"{rule}: {_TEXT}")
            return f"{rule} {self.marker(end)}"
        self._rules.append(f"{rule}[suffix={_quoted(end)}]: {_TEXT}")
        return rule

    def lead(self, reasoning: ReasoningFormat | None, opened: bool) -> str:
        """Reasoning, where the model reasons: it goes on with what the prompt has opened, or may begin."""
        if reasoning is None or not reasoning.begin:
            return ""
        thoughts = self.up_to("thoughts", reasoning.end) + r" /\s{0,4}/"
        return thoughts + " " if opened else f"({self.marker(reasoning.begin)} {thoughts})? "

    def all_calls(self, parallel: bool) -> str:
        """One call or more, with all that belongs around them."""
        more = MAX_CALLS - 1 if parallel else 0
        begin, end, between = self.section()
        return f"{begin} one_call " + (f"({between} one_call){{0,{more}}} " if more else "") + end

    def section(self) -> tuple[str, str, str]:
        """What stands before all calls, after them, and between two."""
        tools, payload = self._tools, self._tools.payload
        begin = self.marker(tools.begin[0]) if tools.begin and not tools.bare else ""
        end = self.marker(tools.end[0]) if tools.end else ""
        if isinstance(payload, HeadedCalls):
            return begin, end, '"\\n"?'
        if tools.bare:
            return "", "", _quoted(f"{tools.between[0] if tools.between else ''} ")
        if _is_list(tools):
            return f'{begin} "["', f'"]" {end}', '", "'
        if not end:
            return begin, "", begin
        return f'{begin} "\\n"', f'"\\n" {end}', f'"\\n" {end} "\\n" {begin} "\\n"'

    def _call(self, name: str, number: int) -> str:
        payload = self._tools.payload
        if isinstance(payload, HeadedCalls):
            return self._headed(payload, name, number)
        assert isinstance(payload, JsonCalls)
        keys = payload.name_keys[0], payload.argument_keys[1 if self._tools.bare and len(payload.argument_keys) > 1 else 0]
        head = f"{{{json.dumps(keys[0])}: {json.dumps(name)}, {json.dumps(keys[1])}: "
        return f'{_quoted(head)} arguments_{number} "}}"'

    def _headed(self, payload: HeadedCalls, name: str, number: int) -> str:
        parts = [self.marker(payload.open)] if payload.open else []
        if payload.prefix:
            parts.append(self.marker(payload.prefix))
        parts.append(f"{_quoted(f'functions.{name}:')} /[0-9]{{1,2}}/" if payload.numbered else _quoted(name))
        for separator in payload.separator:
            parts.append(f'"\\n" {_quoted(separator)} "\\n"' if separator.startswith("`") else self.marker(separator))
        parts.append(f"arguments_{number}")
        for close in payload.close:
            parts.append(f'"\\n" {_quoted(close)}' if close.startswith("`") else self.marker(close))
        return " ".join(parts)


def _is_list(tools: ToolFormat) -> bool:
    """Whether the model puts its calls in one JSON list."""
    singles = {TOOL_PARSERS[name].begin for name in ("hermes", "longcat", "internlm", "granite-20b-fc")}
    return tools.begin not in singles


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema(schema: Mapping[str, Any]) -> str:
    """A tool's parameters, which are always an object."""
    whole = {"type": "object", **schema, "x-guidance": _SCHEMA_OPTIONS}
    return _json(whole)


def _json(schema: Mapping[str, Any]) -> str:
    """'::=' would make a reader take the grammar for another dialect."""
    return json.dumps(schema, ensure_ascii=False).replace("::=", ":\\u003a=")
