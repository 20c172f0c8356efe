"""Text made token by token is the text the tokenizer makes of all of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.detokenizer import REPLACEMENT, TokenBytes, TokenJson, is_byte_level, json_inside
from frontend.tokenizer import Tokenizer
from tests.frontend import backends

BYTE_LEVEL = Tokenizer(backends.byte_level(), {}, None)
FALLBACK = Tokenizer(backends.byte_fallback(), {}, None)


def pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip)
    return [detokenizer.feed(token) for token in ids] + [detokenizer.finish()]


def test_kinds_are_told_apart() -> None:
    assert is_byte_level(backends.byte_level())
    assert not is_byte_level(backends.byte_fallback())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40), st.booleans())
def test_any_ids_of_a_byte_level_vocabulary(ids: list[int], skip: bool) -> None:
    """Random ids are mostly broken UTF-8, which has to become the same replacement characters."""
    assert "".join(pieces(BYTE_LEVEL, ids, skip)) == BYTE_LEVEL.decode(ids, skip)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back_and_no_character_is_split(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False)
    parts = pieces(BYTE_LEVEL, ids)
    assert "".join(parts) == BYTE_LEVEL.decode(ids)
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in part for part in parts)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="helowrd é,.你😀\n", max_size=30))
def test_any_text_of_a_byte_fallback_vocabulary(text: str) -> None:
    ids = FALLBACK.encode(text, add_special_tokens=False)
    parts = pieces(FALLBACK, ids)
    assert "".join(parts) == FALLBACK.decode(ids)
    assert all(REPLACEMENT not in part for part in parts)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, FALLBACK.vocab_size - 1), max_size=30))
def test_any_ids_of_a_byte_fallback_vocabulary(ids: list[int]) -> None:
    """Its decoder judges a run of bytes as a whole: one broken byte takes back what came before it in the run. Only that may differ."""
    whole = FALLBACK.decode(ids)
    text = "".join(pieces(FALLBACK, ids))
    if REPLACEMENT in whole:
        assert text or not whole
    else:
        assert text == whole


def test_an_emoji_waits_for_its_last_byte() -> None:
    ids = [BYTE_LEVEL.backend.token_to_id(character) for character in "ðŁĺĢ"]  # the four bytes of U+1F600 in GPT-2's characters
    assert None not in ids
    assert pieces(BYTE_LEVEL, ids) == ["", "", "", "😀", ""]


def test_an_unfinished_character_becomes_one_replacement() -> None:
    ids = [BYTE_LEVEL.backend.token_to_id(character) for character in "ðŁĺ"]
    assert pieces(BYTE_LEVEL, ids) == ["", "", "", REPLACEMENT]


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens(skip: bool) -> None:
    end = BYTE_LEVEL.backend.token_to_id("<|im_end|>")
    assert "".join(pieces(BYTE_LEVEL, [end], skip)) == ("" if skip else "<|im_end|>")


def test_ids_beyond_the_vocabulary_are_no_text() -> None:
    """A model's output layer may be padded to more rows than there are tokens."""
    assert "".join(pieces(BYTE_LEVEL, [10**6, -1])) == ""


def test_json_table_agrees_with_the_bytes() -> None:
    table = TokenBytes(backends.byte_level(), BYTE_LEVEL.special_ids, True)
    prebuilt = TokenJson(table)
    whole = 0
    for token in range(BYTE_LEVEL.vocab_size):
        escaped = prebuilt[token]
        if escaped is not None:
            assert json.loads(b'"' + escaped + b'"').encode() == table[token]
            whole += 1
    assert 150 < whole < BYTE_LEVEL.vocab_size


@given(st.text())
def test_json_inside_reads_back(text: str) -> None:
    assert json.loads('"' + json_inside(text).decode() + '"') == text


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([BYTE_LEVEL, FALLBACK]))
def test_a_copy_goes_its_own_way(data: st.DataObject, tokenizer: Tokenizer) -> None:
    some = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=10)
    first, one, other = data.draw(some), data.draw(some), data.draw(some)
    original = tokenizer.detokenizer()
    said = [original.feed(token) for token in first]
    twin = original.copy()
    assert twin.pending == original.pending
    ways = [(original, one), (twin, other)]
    for reader, rest in ways:
        text = "".join([*said, *map(reader.feed, rest), reader.finish()])
        assert text == "".join(pieces(tokenizer, first + rest))
