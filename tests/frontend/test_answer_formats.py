"""Which formats a server takes: by name, or by what the chat template shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from frontend.answer_formats import AnswerFormats
from frontend.output_split.splitting import choose, opened_by, special_ids
from frontend.reasoning_parsers import ALIASES as REASONING_ALIASES
from frontend.reasoning_parsers import REASONING_PARSERS
from frontend.reasoning_parsers import TEMPLATE_SIGNS as REASONING_SIGNS
from frontend.tokenizer import Tokenizer
from frontend.tool_parsers import ALIASES as TOOL_ALIASES
from frontend.tool_parsers import TEMPLATE_SIGNS as TOOL_SIGNS
from frontend.tool_parsers import TOOL_PARSERS
from frontend.tools import NO_TOOLS, read_tools
from ipc.config import ServerConfig
from ipc.errors import ConfigError
from ipc.grammar import StructuredOutputsParams
from tests.frontend import backends

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tool_calling.md"


@pytest.mark.parametrize(
    "template, tools, reasoning",
    [
        ("{{ '<tool_call>' }}{{ content.split('</think>') }}", "hermes", "deepseek_r1"),
        ("<tool_call>\n<function=x>", "qwen3_coder", None),
        ("<tool_call>{name}<arg_key> <think></think>", "glm45", "deepseek_r1"),
        ("[TOOL_CALLS] [THINK]", "mistral", "mistral"),
        ("<|start|><|channel|>analysis<|message|>", "openai", "openai_gptoss"),
        ("<｜tool▁calls▁begin｜>```json", "deepseek_v3", None),
        ("<｜tool▁calls▁begin｜></think>", "deepseek_v31", "deepseek_r1"),
        ("<|tool_calls_section_begin|></think>", "kimi_k2", "kimi_k2"),
        ('<|start_header_id|> {"name": x, "parameters": y}', "llama3_json", None),
        ("<|im_start|>", None, None),
    ],
)
def test_auto(template: str, tools: str | None, reasoning: str | None) -> None:
    assert choose("auto", TOOL_PARSERS, TOOL_SIGNS, template) is (TOOL_PARSERS[tools] if tools else None)
    assert choose("auto", REASONING_PARSERS, REASONING_SIGNS, template) is (REASONING_PARSERS[reasoning] if reasoning else None)


def test_signs_name_formats() -> None:
    assert {name for _, name in TOOL_SIGNS} <= set(TOOL_PARSERS)
    assert {name for _, name in REASONING_SIGNS} <= set(REASONING_PARSERS)


def test_the_demo_model_has_both() -> None:
    formats = AnswerFormats.of(ServerConfig(), Tokenizer.load(str(ROOT / "quire" / "demo_model")))
    assert (formats.tools, formats.reasoning) == (TOOL_PARSERS["hermes"], REASONING_PARSERS["deepseek_r1"])


def test_by_name() -> None:
    tokenizer = Tokenizer(backends.byte_level(), {}, backends.TEMPLATE)
    formats = AnswerFormats.of(ServerConfig(tool_call_parser="glm45", reasoning_parser="none"), tokenizer)
    assert (formats.tools, formats.reasoning) == (TOOL_PARSERS["glm45"], None)
    with pytest.raises(ConfigError, match=r"tool_call_parser: there is no format 'hermit'"):
        AnswerFormats.of(ServerConfig(tool_call_parser="hermit"), tokenizer)
    assert not set(TOOL_ALIASES) & set(TOOL_PARSERS) and not set(REASONING_ALIASES) & set(REASONING_PARSERS)
    for alias, name in TOOL_ALIASES.items():
        assert AnswerFormats.of(ServerConfig(tool_call_parser=alias), tokenizer).tools == TOOL_PARSERS[name]
    for alias, name in REASONING_ALIASES.items():
        assert AnswerFormats.of(ServerConfig(reasoning_parser=alias), tokenizer).reasoning == REASONING_PARSERS[name]
    with pytest.raises(ConfigError, match=r"there are .* qwen25, "):
        AnswerFormats.of(ServerConfig(tool_call_parser="qwen2"), tokenizer)
    with pytest.raises(ConfigError, match="reasoning_parser"):
        AnswerFormats.of(ServerConfig(reasoning_parser="x"), tokenizer)


def test_a_forced_call_of_a_model_with_channels_is_read() -> None:
    formats = AnswerFormats(TOOL_PARSERS["openai"], REASONING_PARSERS["openai_gptoss"], {}, {})
    tools = read_tools([{"type": "function", "function": {"name": "f"}}], "required", None)
    split = formats.splitting(tools, "", None, True)
    assert split is not None
    assert [call.name for call in split.split('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>').calls] == ["f"]
    constraint = formats.constraint(tools, split)
    assert constraint is not None
    assert constraint.grammar is not None


def test_a_constraint_where_the_prompt_has_opened_reasoning() -> None:
    formats = AnswerFormats(None, REASONING_PARSERS["deepseek_r1"], {}, {})
    split = formats.splitting(NO_TOOLS, "<think>\n", None, True)
    assert split is not None
    assert split.opened
    for given, opened in ((StructuredOutputsParams(json={}), True), (StructuredOutputsParams(regex="a"), False)):
        after, constraint = formats.with_constraint(split, given)
        assert after is not None
        assert after.opened is opened
        assert (constraint is given) is not opened


def test_what_the_prompt_has_opened() -> None:
    think = REASONING_PARSERS["deepseek_r1"]
    assert opened_by("...<|im_start|>assistant\n<think>\n", None, think)
    assert not opened_by("...<think>\n\n</think>\n\n", None, think)
    assert not opened_by("a <think> b", None, think)
    assert opened_by("", "<think>so far", think)
    assert not opened_by("", "<think>so far</think> so", think)
    assert not opened_by("<think>", None, None)


def test_special_tokens_that_are_markers_become_text() -> None:
    tokens = {1: "<|im_end|>", 2: "[TOOL_CALLS]", 3: "<|plugin|>"}
    assert special_ids(TOOL_PARSERS["mistral"], None, tokens) == {2}
    assert special_ids(TOOL_PARSERS["internlm"], None, tokens) == {3}
    tokenizer = Tokenizer(backends.byte_level(), {}, backends.TEMPLATE)
    start, end = (tokenizer.backend.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    decoder = tokenizer.detokenizer(True, frozenset({start}))
    assert decoder.feed(start) + decoder.feed(end) == "<|im_start|>"
    other = Tokenizer(backends.byte_fallback(), {}, backends.TEMPLATE)
    ids = [other.backend.token_to_id(name) for name in ("<s>", "▁hello", "</s>", "▁world")]
    window = other.detokenizer(True, frozenset({ids[2]}))
    assert "".join(map(window.feed, ids)) + window.finish() == "hello</s> world"


def test_the_page_names_every_format_and_no_other() -> None:
    """The tables are the lists that users choose from."""
    text = PAGE.read_text(encoding="utf-8")
    text = text[text.index("## Tool-call formats") :]
    tools, reasoning = re.split(r"^## Reasoning formats$", text, flags=re.MULTILINE)
    for part, known in ((tools, TOOL_PARSERS), (reasoning, REASONING_PARSERS)):
        rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(known)
