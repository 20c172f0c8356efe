"""The names under which clients ask for structured output."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from frontend.schemas.completions import CompletionRequest
from frontend.schemas.structured import structured_outputs
from ipc.errors import InvalidRequestError
from ipc.grammar import Grammar, GrammarKind, StructuredOutputsParams
from ipc.sampling_params import SamplingParams

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TAG = '{"triggers":["<f>"],"structures":[{"begin":"<f>","schema":{},"end":"</f>"}]}'
TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'


def grammar(**fields: Any) -> Grammar | None:
    params = structured_outputs(msgspec.convert({"prompt": "x", **fields}, CompletionRequest))
    return None if params is None else params.to_grammar()


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}


@pytest.mark.parametrize(
    "fields, kind, text, whitespace, param",
    [
        ({"response_format": named(SCHEMA)}, GrammarKind.JSON_SCHEMA, TEXT, "", "response_format"),
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA, '{"type":"object"}', "", "response_format"),
        ({"structured_outputs": {"json": SCHEMA}}, GrammarKind.JSON_SCHEMA, TEXT, "", "structured_outputs"),
        ({"structured_outputs": {"json": TEXT, "disable_any_whitespace": False}}, GrammarKind.JSON_SCHEMA, TEXT, "*", "structured_outputs"),
        (
            {"structured_outputs": {"json_object": True, "whitespace_pattern": " ?"}},
            GrammarKind.JSON_SCHEMA,
            '{"type":"object"}',
            " ?",
            None,
        ),
        ({"structured_outputs": {"regex": "a+", "disable_fallback": True, "json": None}}, GrammarKind.REGEX, "a+", "", None),
        ({"structured_outputs": {"choice": ["a", 'b"']}}, GrammarKind.CHOICE, '["a","b\\""]', "", None),
        ({"structured_outputs": {"grammar": "start: x"}}, GrammarKind.LARK, "start: x", "", None),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": "[ ]*"}, GrammarKind.JSON_SCHEMA, TEXT, "[ ]*", "guided_json"),
        ({"guided_regex": "a+"}, GrammarKind.REGEX, "a+", "", "guided_regex"),
        ({"guided_choice": ["a"]}, GrammarKind.CHOICE, '["a"]', "", "guided_choice"),
        ({"guided_grammar": "g"}, GrammarKind.LARK, "g", "", "guided_grammar"),
        ({"guided_regex": "a+", "guided_decoding_backend": "guidance"}, GrammarKind.REGEX, "a+", "", "guided_regex"),
        ({"structured_outputs": {"regex": "a+", "backend": "llguidance"}}, GrammarKind.REGEX, "a+", "", None),
        (
            {"response_format": {"type": "json_object"}, "guided_decoding_backend": "auto"},
            GrammarKind.JSON_SCHEMA,
            '{"type":"object"}',
            "",
            "response_format",
        ),
        ({"structural_tag": TAG}, GrammarKind.STRUCTURAL_TAG, TAG, "", "structural_tag"),
        ({"ebnf": "g"}, GrammarKind.LARK, "g", "", "ebnf"),
        ({"regex": "r"}, GrammarKind.REGEX, "r", "", "regex"),
        ({"json_schema": TEXT}, GrammarKind.JSON_SCHEMA, TEXT, "", "json_schema"),
    ],
)
def test_translated(fields: dict[str, Any], kind: GrammarKind, text: str, whitespace: str, param: str | None) -> None:
    assert grammar(**fields) == Grammar(kind, text, whitespace, param or "structured_outputs")


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None, "structured_outputs": None}])
def test_nothing_asked(fields: dict[str, Any]) -> None:
    assert grammar(**fields) is None


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": ["text"]}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 3}}}, "response_format"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}}, "structured_outputs"),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs"),
        ({"structured_outputs": {"choice": "abc"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": "yes"}}, "structured_outputs"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_regex": "a+", "guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
        ({"guided_decoding_backend": 3}, "guided_decoding_backend"),
        ({"structured_outputs": {"regex": "a+", "backend": "outlines"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a+", "backend": ["auto"]}}, "structured_outputs"),
        ({"structured_outputs": {"backend": "auto"}}, "structured_outputs"),
        ({"structural_tag": "[]"}, "structural_tag"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
    ],
)
def test_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        grammar(**fields)
    assert caught.value.param == param


def test_a_backend_that_is_not_there_is_told_what_there_is() -> None:
    for fields in ({"structured_outputs": {"regex": "a", "backend": "xgrammar"}}, {"guided_decoding_backend": "xgrammar"}):
        with pytest.raises(InvalidRequestError, match=r"no backend .xgrammar. .* there are auto, llguidance, guidance"):
            grammar(**fields)
    with pytest.raises(InvalidRequestError, match="no backend"):
        SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"], backend="outlines")).validate(100)


def test_the_wire_keeps_it() -> None:
    params = SamplingParams(
        structured_outputs=structured_outputs(msgspec.convert({"prompt": "x", "guided_json": SCHEMA}, CompletionRequest))
    )
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(params.validate(100)), type=SamplingParams)
    assert again == params
