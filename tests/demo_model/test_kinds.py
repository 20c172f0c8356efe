"""The grammars: the same text from the same seed, right answers, and nothing of the test side in the training side."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from bench.demo_model import kinds
from bench.demo_model.evaluate import EXAMINED, is_right, questions
from bench.demo_model.example import Example, held_out
from bench.demo_model.kinds import arithmetic, repeat, thinking


def drawn(kind: str, count: int, test: bool = False) -> list[Example]:
    rng = random.Random(kind)
    return [kinds.draw(kind, rng, test) for _ in range(count)]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_same_seed_same_text(kind: str) -> None:
    assert drawn(kind, 20) == drawn(kind, 20)


@pytest.mark.parametrize("kind", kinds.GRADED)
def test_held_out_content_is_never_trained_on(kind: str) -> None:
    trained = {content for example in drawn(kind, 300) for content in example.contents}
    assert not any(held_out(content) for content in trained)
    for example in drawn(kind, 30, test=True):
        assert any(held_out(content) and content not in trained for content in example.contents)


def test_about_a_tenth_is_held_out() -> None:
    assert 0.08 < sum(held_out(str(number)) for number in range(5000)) / 5000 < 0.12


@pytest.mark.parametrize("kind", EXAMINED)
def test_questions_stay_the_same_and_accept_their_own_answers(kind: str) -> None:
    asked = questions(kind, 20)
    assert asked == questions(kind, 20)
    for example in asked:
        assert is_right(example, example.turns[-1].said())
        assert not is_right(example, example.turns[-1].said() + " and more")


@pytest.mark.parametrize("kind", ["arithmetic", "arithmetic_three_digits"])
def test_sums_are_right(kind: str) -> None:
    for example in drawn(kind, 200):
        match = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", example.accepted[0])
        assert match
        a, sign, b, result = match.groups()
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert re.findall(r"\d+", example.turns[0].content) in ([a, b], [b, a])


def test_mirrored_sums_go_together() -> None:
    assert arithmetic.key(12, "+", 30) == arithmetic.key(30, "+", 12)


def test_column_addition_carries() -> None:
    assert thinking.column_steps(345, 78).splitlines() == [
        "5 + 8 = 13, write 3, carry 1",
        "4 + 7 + 1 = 12, write 2, carry 1",
        "3 + 0 + 1 = 4, write 4",
    ]


def test_repeated_texts_stand_in_the_prompt_and_differ() -> None:
    texts = set()
    for example in drawn("repeat", 300):
        text = example.accepted[0]
        assert text in example.turns[0].content
        assert text and text == text.strip()
        texts.add(text)
    assert len(texts) > 280
    assert any("\n" in text for text in texts)


def test_every_phrasing_takes_the_text_once() -> None:
    assert all(phrasing.count("{}") == 1 for phrasing in repeat.PHRASINGS)


def test_counts_go_from_end_to_end() -> None:
    for example in drawn("counting", 200):
        numbers = [int(number) for number in example.accepted[0].split(", ")]
        assert len({b - a for a, b in itertools.pairwise(numbers)}) <= 1
        asked = [int(number) for number in re.findall(r"\d+", example.turns[0].content)]
        assert numbers[-1] in asked


def test_json_says_what_was_told() -> None:
    for example in drawn("json", 200):
        for value in json.loads(example.accepted[0]).values():
            assert (str(value) if not isinstance(value, bool) else str(value).lower()) in example.turns[0].content


def test_calls_fit_the_schemas() -> None:
    for example in drawn("tool_call", 200):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.tools}
        for body in re.findall(r"<tool_call>\n(.*)\n</tool_call>", example.accepted[0]):
            call = json.loads(body)
            assert list(call["arguments"]) == schemas[call["name"]]["required"]
            types = {"string": str, "integer": int}
            for name, value in call["arguments"].items():
                assert isinstance(value, types[schemas[call["name"]]["properties"][name]["type"]])


def test_thinking_comes_before_the_answer() -> None:
    for example in drawn("thinking", 100):
        said = example.turns[-1].said()
        assert said.startswith("<think>\n") and said.endswith("\n</think>\n\n" + example.accepted[0])
        assert not is_right(example, example.accepted[0])
