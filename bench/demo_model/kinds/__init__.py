"""The kinds of text, by name, and how they are drawn and joined into conversations."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from bench.demo_model.example import Example, Turn
from bench.demo_model.kinds import arithmetic, counting, json_facts, repeat, small_talk, spelling, stories, thinking, tool_calls

KINDS: dict[str, Callable[[random.Random], Example]] = {
    "small_talk": small_talk.sample,
    "arithmetic": arithmetic.sample,
    "arithmetic_three_digits": arithmetic.sample_three_digits,
    "repeat": repeat.sample,
    "counting": counting.sample,
    "spelling": spelling.sample,
    "json": json_facts.sample,
    "tool_call": tool_calls.sample,
    "tool_result": tool_calls.sample_result,
    "thinking": thinking.sample,
    "plain": stories.sample,
}
GRADED = [kind for kind in KINDS if kind != "plain"]
CHAINABLE = ["small_talk", "arithmetic", "repeat", "counting", "spelling", "json"]
WRITTEN_SYSTEMS = [
    "You are a helpful assistant.",
    "You are quire's demo model.",
    "Be brief.",
    "You are a friendly assistant. Answer briefly.",
    "You are a helpful AI assistant.",
]


def draw(kind: str, rng: random.Random, test: bool) -> Example:
    """An example of this kind from the training side or from the held-out side."""
    while True:
        example = KINDS[kind](rng)
        if example.for_test() == test:
            return example


def with_system(example: Example, rng: random.Random) -> Example:
    """The same example under a system turn, as clients like to send one."""
    return dataclasses.replace(example, turns=(Turn("system", rng.choice(WRITTEN_SYSTEMS)), *example.turns))


def idle_thinking(rng: random.Random, test: bool) -> Example:
    """An easy question with thinking switched on: a stock thought, then the answer."""
    kind = rng.choice(list(thinking.IDLE_THOUGHTS))
    example = draw(kind, rng, test)
    *before, last = example.turns
    last = dataclasses.replace(last, thinking=thinking.IDLE_THOUGHTS[kind])
    return dataclasses.replace(example, turns=(*before, last), thinking=True)


def chained(rng: random.Random, count: int, test: bool) -> Example:
    """A chat of several exchanges; only the last one is held out, when a test wants that."""
    parts = [draw(rng.choice(CHAINABLE), rng, False) for _ in range(count - 1)]
    parts.append(draw(rng.choice(CHAINABLE), rng, test))
    turns = tuple(turn for part in parts for turn in part.turns)
    return dataclasses.replace(parts[-1], kind="chat", turns=turns)


def tool_session(rng: random.Random, test: bool) -> Example:
    """Tools at hand but not needed, or needed only after other talk."""
    example = draw("tool_call", rng, test)
    other = draw(rng.choice(["small_talk", "repeat", "counting", "json"]), rng, test)
    if rng.random() < 0.5:
        return dataclasses.replace(example, turns=(*other.turns, *example.turns))
    return dataclasses.replace(other, tools=example.tools, kind="tool_call")


def direct_word_problem(rng: random.Random, test: bool) -> Example:
    """A thinking task whose sum is easy enough to answer at once."""
    while True:
        example = thinking.word_problem(rng)
        if example.for_test() == test:
            *before, last = example.turns
            turns = (*before, dataclasses.replace(last, thinking=None))
            return dataclasses.replace(example, turns=turns, thinking=False, kind="word_problem")
