"""What tokenizers say of their answers, read into formats; the oracle of what it means is the Transformers library's own parser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend import response_template
from frontend.answer_formats import AnswerFormats
from frontend.output_split.calls import JsonCalls
from frontend.output_split.formats import ToolFormat
from frontend.output_split.splitting import Splitting
from frontend.reasoning_parsers import THINK
from frontend.tokenizer import Tokenizer
from frontend.tool_parsers.json_formats import HERMES
from frontend.tool_parsers.tagged_formats import QWEN
from ipc.config import ServerConfig
from ipc.errors import ConfigError
from tests.frontend import backends

THOUGHTS = {"open": "<think>", "close": "</think>", "content": "text"}
FUNCTION = {"type": "function", "function": "{content}"}
JSON_CALLS = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json", "transform": FUNCTION}
LISTED = {
    "open": "<|START_ACTION|>",
    "close": "<|END_ACTION|>",
    "content": "json",
    "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
    "transform_each": True,
}
NAMED = {
    "open_pattern": r"<tool_call>\s*<function=(?P<name>\w+)>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "xml-inline",
    "content_args": {
        "tag_pattern": r"<parameter=(?P<key>\w+)>\s*(?P<value>.*?)\s*</parameter>",
        "value_parser": {"name": "json", "args": {"allow_non_json": True}},
    },
    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
}
CLOSED_TWICE = NAMED | {
    "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
    "close": None,
    "close_pattern": r"</function>\s*</tool_call>",
    "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
}


def template(calls: Any, thoughts: Any = THOUGHTS, **more: Any) -> dict[str, Any]:
    content = {"close": ["<|im_end|>"], "content": "text"}
    fields = {"thinking": thoughts, "tool_calls": calls, "content": content}
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {name: each for name, each in fields.items() if each is not None},
        **more,
    }


@pytest.mark.parametrize(
    "calls, expected",
    [
        (JSON_CALLS, HERMES),
        (NAMED, QWEN),
        (CLOSED_TWICE, QWEN),
        (LISTED, ToolFormat(JsonCalls(("tool_name",), ("parameters",)), ("<|START_ACTION|>",), ("<|END_ACTION|>",))),
        ({"close": "<|im_end|>", "content": "json"}, ToolFormat(JsonCalls(), (), ("<|im_end|>",), bare=True)),
    ],
    ids=["json", "tags", "tags closed twice", "list", "bare"],
)
def test_formats_that_are_known(calls: dict[str, Any], expected: ToolFormat) -> None:
    found = response_template.read(template(calls))
    assert (found.tools, found.reasoning, found.why_not) == (expected, THINK, {})


@pytest.mark.parametrize(
    "calls, text",
    [
        (JSON_CALLS, '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1, "s": "x y"}}\n</tool_call>'),
        (
            NAMED,
            "<think>\nhm\n</think>\n\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\nx y\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        (LISTED, '<think>hm</think><|START_ACTION|>[{"tool_name": "f", "parameters": {"a": 1, "s": "x y"}}]<|END_ACTION|>'),
    ],
    ids=["json", "tags", "list"],
)
def test_it_means_here_what_it_means_there(calls: dict[str, Any], text: str) -> None:
    chat_parsing = pytest.importorskip("transformers.utils.chat_parsing")
    theirs = chat_parsing.parse_response(text, template(calls), prefix="<|im_start|>assistant\n")
    found = response_template.read(template(calls))
    schemas = {"f": {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}}
    ours = Splitting(found.tools, found.reasoning, schemas).split(text)
    assert ours.reasoning == theirs["thinking"]
    calls_there = theirs["tool_calls"] if isinstance(theirs["tool_calls"], list) else [theirs["tool_calls"]]
    there = [(call["function"]["name"], call["function"]["arguments"]) for call in calls_there]
    assert [(call.name, json.loads(call.arguments)) for call in ours.calls] == there


@pytest.mark.parametrize(
    "calls",
    [
        None,
        {"open": "<call>", "close": "</call>", "content": "kv-lines"},
        JSON_CALLS | {"content_args": {"unquoted_keys": True}},
        JSON_CALLS | {"transform": {"type": "function", "function": {"name": "{content.a.b}", "arguments": "x"}}},
        JSON_CALLS | {"open": None, "open_pattern": r"<a>|<b>"},
        NAMED | {"open_pattern": r"<call (?P<name>\w+)"},
        NAMED | {"content_args": {"tag_pattern": r"<(?P<key>\w+)>(?P<value>.*?)</\1>"}},
        NAMED | {"content_args": None},
        JSON_CALLS | {"open": 5},
        JSON_CALLS | {"open": []} | {"open": [""]},
    ],
    ids=str,
)
def test_what_is_not_understood_is_not_guessed_at(calls: Any) -> None:
    found = response_template.read(template(calls))
    assert found.tools is None and found.why_not["tools"] and found.reasoning == THINK


@pytest.mark.parametrize("given", [None, [], "x", {}, {"fields": []}, {"version": 2, "fields": {}}], ids=str)
def test_no_template_or_another_version(given: Any) -> None:
    found = response_template.read(given)
    assert (found.tools, found.reasoning) == (None, None) and set(found.why_not) == {"tools", "reasoning"}


def test_who_takes_it() -> None:
    def formats(parser: str, own: Any, source: str = "{{ messages }}") -> AnswerFormats:
        tokenizer = Tokenizer(backends.byte_level(), {"response_template": own}, source)
        return AnswerFormats.of(ServerConfig(tool_call_parser=parser, reasoning_parser=parser), tokenizer)

    own = template(LISTED)
    for parser in ("hf", "response_template", "auto"):
        found = formats(parser, own)
        assert found.tools == response_template.read(own).tools and found.reasoning == THINK
    assert formats("none", own).tools is None
    # What the chat template shows is known better.
    assert formats("auto", own, "{{ '<tool_call>' }}").tools is HERMES
    assert formats("auto", template(None)).tools is None
    with pytest.raises(ConfigError, match="tool_call_parser: the tokenizer's response_template cannot be followed: it has no field"):
        formats("hf", template(None))
    with pytest.raises(ConfigError, match="tool_call_parser: the tokenizer has no response_template"):
        formats("hf", None)
