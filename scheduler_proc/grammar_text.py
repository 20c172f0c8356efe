"""From a request's Grammar to llguidance's: the one place that knows its formats. Imported where llguidance may be, never by the core."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag, grammar_from, regex_to_lark

from ipc.grammar import Grammar, GrammarKind
from scheduler_proc.grammar_facts import TokenizerFacts

MAX_MESSAGE = 400
# Per mask, llguidance's own limits are some tens of milliseconds; states of a lexer take 1 to 2 kB each, so these at most 50 MB.
LIMITS = LLParserLimits(max_lexer_states=25_000, verbose_errors=False)
_SOURCE_LINES = re.compile(r"\n *\d+ \| ")
_NOTHING = "nothing can be generated that it matches"


def load_tokenizer(facts: TokenizerFacts) -> LLTokenizer:
    """Read tokenizer.json; holds the interpreter's lock for up to a second. Raises an exception that says why it cannot be used."""
    return LLTokenizer(facts.file, n_vocab=facts.vocab_size, eos_token=facts.eos_token_ids or None)


def translate(grammar: Grammar, tokenizer: LLTokenizer) -> str:
    """llguidance's text for a grammar. Raises ValueError saying what is wrong with it; most errors show only when it is built."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            # As overrides, so that a schema's own x-guidance cannot say "lenient", which would leave keywords out.
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_json_options(grammar.whitespace))
        case GrammarKind.REGEX:
            # \d is an ASCII digit, as in JSON schemas and in most people's minds.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, use_ascii='d')}/")
        case GrammarKind.CHOICE:
            choices = json.loads(grammar.text)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in choices))
        case GrammarKind.LARK:
            return grammar_from("grammar", grammar.text)
        case GrammarKind.STRUCTURAL_TAG:
            return _structural_tag(grammar, tokenizer)


def build(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """A matcher in its initial state; releases the interpreter's lock meanwhile. Raises ValueError if the grammar cannot be used."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise ValueError(message_of(matcher))
    return matcher


def prove(tokenizer: LLTokenizer, text: str) -> None:
    """Build it and compute the first mask, as generation will. Raises ValueError if either fails."""
    matcher = build(tokenizer, text)
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(message_of(matcher))
    if not any(mask):
        raise ValueError(_NOTHING)


def message_of(matcher: LLMatcher) -> str:
    """Why a matcher is in its error state, in one line."""
    return tidy(matcher.get_error())


def tidy(text: str) -> str:
    """One line of bounded length."""
    if text.startswith("NoExtension"):
        return _NOTHING
    # Less the parser's state and its drawing of the place, which are not the user's text but what became of it.
    line = " ".join(_SOURCE_LINES.split(text.split("<state>")[0])[0].split())
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + " ..."


def _json_options(whitespace: str) -> Any:
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": False, "whitespace_flexible": whitespace == "*"}
    if whitespace not in ("", "*"):
        options["whitespace_pattern"] = whitespace
    return options


def _structural_tag(grammar: Grammar, tokenizer: LLTokenizer) -> str:
    """Free text in which each trigger leads to one of its structures."""
    document = json.loads(grammar.text)
    options = _json_options(grammar.whitespace)
    tags = []
    for each in document["structures"]:
        schema = {} if each["schema"] is True else each["schema"]
        if schema is False:
            raise ValueError("a structure's schema is false, which nothing matches")
        # The longest trigger that fits: after a shorter one, text is still free.
        trigger = max((trigger for trigger in document["triggers"] if each["begin"].startswith(trigger)), key=len)
        tags.append(StructTag(trigger=trigger, begin=each["begin"], grammar={**schema, "x-guidance": options}, end=each["end"]))
    special = [_is_special(tag.trigger, tokenizer) for tag in tags]
    if any(special) and not all(special):
        raise ValueError("some triggers are special tokens of this model and some are not; use one kind")
    return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=all(special)))


def _is_special(text: str, tokenizer: LLTokenizer) -> bool:
    tokens = tokenizer.tokenize_str(text, parse_special=True)
    return len(tokens) == 1 and tokenizer.is_special_token(tokens[0])
