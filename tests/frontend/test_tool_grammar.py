"""Grammars of forced and bound calls: random answers under them parse into calls that are valid by their schemas."""

from __future__ import annotations

import json
import random
from functools import cache

import jsonschema
import llguidance
import llguidance.numpy
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from frontend import tool_grammar
from frontend.output_split import Splitting
from frontend.reasoning_parsers import REASONING_PARSERS
from frontend.tool_parsers import TOOL_PARSERS
from ipc.grammar import StructuredOutputsParams
from tests.frontend import backends

SCHEMAS = {
    "f": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "e": {"enum": ["x", "::="]}},
        "required": ["a", "e"],
        "additionalProperties": False,
    },
    "g.h-1": {"type": "object", "properties": {}, "additionalProperties": False},
}
THINK = REASONING_PARSERS["deepseek_r1"]
MARKERS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "<|tool_call|>",
    "<｜tool▁sep｜>",
    "<|action_start|>",
    "<|plugin|>",
]
FORCED = [name for name, form in TOOL_PARSERS.items() if tool_grammar.forced_format(form) is form]


@cache
def vocabulary() -> tuple[Tokenizer, LLTokenizer]:
    """Byte-level tokens, and some of the formats' markers as tokens, as in models."""
    backend = Tokenizer.from_str(backends.byte_level().to_str())
    backend.add_tokens([AddedToken(marker, special=marker.startswith("<|"), normalized=False) for marker in MARKERS])
    return backend, LLTokenizer(backend.to_str(), eos_token=0)


def walk(grammar: str, seed: int, steps: int = 400) -> str | None:
    """A random answer that the grammar accepts, or None if it has not come to an end."""
    backend, tokenizer = vocabulary()
    matcher = LLMatcher(tokenizer, llguidance.grammar_from("grammar", grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    rng, ids = random.Random(seed), []
    for _ in range(steps):
        if matcher.is_accepting() and rng.random() < 0.3:
            break
        llguidance.numpy.fill_next_token_bitmask(matcher, mask)
        allowed = [token for token in range(1, tokenizer.vocab_size) if mask[0, token // 32] >> (token % 32) & 1]
        if not allowed:
            break
        marks = [token for token in allowed if (backend.id_to_token(token) or "") in MARKERS]
        ids.append(rng.choice(marks if marks and rng.random() < 0.3 else allowed))
        assert matcher.consume_token(ids[-1])
    return backend.decode(ids, skip_special_tokens=False) if matcher.is_accepting() else None


def token_id(text: str) -> int | None:
    added = {each.content: token for token, each in vocabulary()[0].get_added_tokens_decoder().items()}
    return added.get(text)


@pytest.mark.parametrize("name", FORCED)
def test_forced_answers_are_valid_calls(name: str) -> None:
    form = TOOL_PARSERS[name]
    for parallel in (True, False):
        grammar = tool_grammar.forced(form, SCHEMAS, parallel, None, False, token_id)
        answers = [answer for seed in range(6) if (answer := walk(grammar, seed)) is not None]
        assert answers
        for answer in answers:
            message = Splitting(form, None, SCHEMAS).split(answer)
            assert message.content is None, answer
            assert len(message.calls) in (range(1, 17) if parallel else (1,)), answer
            for call in message.calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_comes_first(opened: bool) -> None:
    grammar = tool_grammar.forced(TOOL_PARSERS["hermes"], SCHEMAS, False, THINK, opened, token_id)
    split = Splitting(TOOL_PARSERS["hermes"], THINK, SCHEMAS, opened)
    messages = [split.split(answer) for seed in range(30) if (answer := walk(grammar, seed)) is not None]
    assert all(len(message.calls) == 1 and message.content is None for message in messages)
    assert any(message.reasoning for message in messages)


def test_reasoning_without_tokens_of_its_own() -> None:
    grammar = tool_grammar.forced(TOOL_PARSERS["mistral"], SCHEMAS, False, REASONING_PARSERS["mistral"], True, lambda _: None)
    tokenizer = vocabulary()[1]
    matcher = LLMatcher(tokenizer, llguidance.grammar_from("grammar", grammar), log_level=0)
    text = 'a [/ b[/THINK][TOOL_CALLS][{"name": "f", "arguments": {"a": 1, "e": "x"}}]'
    plain = Tokenizer.from_str(backends.byte_level().to_str())
    assert matcher.consume_tokens(plain.encode(text).ids)
    assert matcher.is_accepting()


def test_a_schema_is_kept_after_reasoning() -> None:
    grammar = tool_grammar.after_reasoning(StructuredOutputsParams(json=SCHEMAS["f"]).to_grammar(), THINK, token_id)
    assert grammar is not None
    answers = [answer for seed in range(20) if (answer := walk(grammar, seed)) is not None]
    assert answers
    for answer in answers:
        message = Splitting(None, THINK, opened=True).split(answer)
        jsonschema.validate(json.loads(message.content or ""), SCHEMAS["f"])
    assert tool_grammar.after_reasoning(StructuredOutputsParams(regex="a").to_grammar(), THINK, token_id) is None


@pytest.mark.parametrize("name", [name for name in FORCED if not TOOL_PARSERS[name].bare])
@pytest.mark.parametrize("opened", [None, False, True])
def test_a_document_or_calls(name: str, opened: bool | None) -> None:
    """opened: whether the prompt ends inside of reasoning; None: the model does not reason."""
    form, thoughts = TOOL_PARSERS[name], None if opened is None else THINK
    given, schema = StructuredOutputsParams(json=SCHEMAS["f"]).to_grammar(), SCHEMAS["g.h-1"]
    grammar = tool_grammar.answer_or_calls(given, form, {"g.h-1": schema}, True, thoughts, bool(opened), token_id)
    assert grammar is not None
    split = Splitting(form, thoughts, {"g.h-1": schema}, bool(opened))
    documents = calls = 0
    for seed in range(16):
        if (answer := walk(grammar, seed)) is None:
            continue
        message = split.split(answer)
        assert opened or message.reasoning is None
        if message.calls:
            assert message.content is None, answer
            calls += 1
        else:
            jsonschema.validate(json.loads(message.content or ""), SCHEMAS["f"])
            documents += 1
    assert documents and calls


def test_no_document_or_calls() -> None:
    document = StructuredOutputsParams(json=True).to_grammar()
    for given, name in ((StructuredOutputsParams(regex="a").to_grammar(), "hermes"), (document, "qwen3_coder"), (document, "xlam")):
        assert tool_grammar.answer_or_calls(given, TOOL_PARSERS[name], SCHEMAS, True, None, False, token_id) is None


def test_free_text_with_bound_calls() -> None:
    grammar = tool_grammar.lazy(TOOL_PARSERS["hermes"], SCHEMAS, True, THINK, token_id)
    assert grammar is not None
    found = 0
    for seed in range(25):
        if (answer := walk(grammar, seed, 60)) is not None:
            for call in Splitting(TOOL_PARSERS["hermes"], THINK, SCHEMAS).split(answer).calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
                found += 1
    assert found


def test_formats_that_cannot_be_bound() -> None:
    assert tool_grammar.lazy(TOOL_PARSERS["llama3_json"], SCHEMAS, True, None, token_id) is None
    assert tool_grammar.lazy(TOOL_PARSERS["qwen3_coder"], SCHEMAS, True, None, token_id) is None
    assert tool_grammar.lazy(TOOL_PARSERS["hermes"], SCHEMAS, True, None, lambda _: None) is None
    assert tool_grammar.forced_format(TOOL_PARSERS["pythonic"]) is tool_grammar.FALLBACK
