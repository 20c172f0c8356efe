"""Thinking, then answering: short steps between <think> tags, then the answer that follows from them."""

from __future__ import annotations

import random

from bench.demo_model import words
from bench.demo_model.example import Example, ask
from bench.demo_model.kinds import arithmetic, spelling

CHAIN = ["What is {}?", "Compute {}.", "{} =", "{}", "How much is {}?", "what is {}?", "Calculate {}"]
COLUMNS = [
    "What is {a} + {b}?",
    "{a} + {b} =",
    "{a}+{b}",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "what is {a}+{b}?",
]
BACKWARDS = [
    "Spell {} backwards.",
    "Reverse the word {}.",
    "Write {} backwards.",
    "What is {} backwards?",
    "spell {} backwards",
    "Reverse {}",
]
LETTERS = [
    "How many letters are in {}?",
    "How many letters does {} have?",
    "Count the letters in {}.",
    'How long is the word "{}"?',
    "how many letters are in {}",
]
BIGGER = [
    "Which is bigger, {a} or {b}?",
    "What is bigger: {a} or {b}?",
    "Is {a} or {b} bigger?",
    "which is larger, {a} or {b}?",
    "Which number is bigger, {a} or {b}?",
]


def steps_of_two(rng: random.Random) -> Example:
    """12 + 7 - 5: two sums, one after the other."""
    a, b, c = (rng.randint(1, 49) for _ in range(3))
    first, second = rng.choice("+-"), rng.choice("+-")
    if first == "-" and a < b:
        a, b = b, a
    middle = arithmetic.result(a, first, b)
    if second == "-" and middle < c:
        second = "+"
    whole = f"{a} {first} {b} {second} {c}"
    thought = f"{arithmetic.fact(a, first, b)}\n{arithmetic.fact(middle, second, c)}"
    keys = (whole, arithmetic.key(a, first, b), arithmetic.key(middle, second, c))
    return ask("thinking", rng.choice(CHAIN).format(whole), f"{whole} = {arithmetic.result(middle, second, c)}", *keys, thinking=thought)


def column_steps(a: int, b: int) -> str:
    """Addition as taught at school, from the right: '5 + 8 = 13, write 3, carry 1'."""
    lines, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for one, other in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))):
        total = int(one) + int(other) + carry
        written = f"{one} + {other}" + (" + 1" if carry else "")
        carry = total // 10
        lines.append(f"{written} = {total}, write {total % 10}" + (", carry 1" if carry else ""))
    return "\n".join(lines)


def columns(rng: random.Random) -> Example:
    """Sums of three digits, column by column."""
    a, b = rng.randint(100, 999), rng.randint(10, 999)
    prompt = rng.choice(COLUMNS).format(a=a, b=b)
    return ask("thinking", prompt, arithmetic.fact(a, "+", b), arithmetic.key(a, "+", b), thinking=column_steps(a, b))


def backwards(rng: random.Random) -> Example:
    word, invented = spelling.any_word(rng)
    prompt = rng.choice(BACKWARDS).format(word)
    thought = f"{word} is {spelling.spelled(word)}"
    return ask("thinking", prompt, spelling.spelled(word[::-1]), word if invented else prompt, thinking=thought)


def letter_count(rng: random.Random) -> Example:
    word, invented = spelling.any_word(rng)
    prompt = rng.choice(LETTERS).format(word)
    thought = ", ".join(f"{place} {letter}" for place, letter in enumerate(word, 1))
    answer = f"{word} has {len(word)} letter{'s' if len(word) > 1 else ''}."
    return ask("thinking", prompt, answer, word if invented else prompt, thinking=thought)


def bigger(rng: random.Random) -> Example:
    top = rng.choice([99, 999])
    a, b = rng.sample(range(1, top), 2)
    longer = len(str(a)) != len(str(b))
    why = f"{a} has {len(str(a))} digits, {b} has {len(str(b))}." if longer else f"{a} and {b} have {len(str(a))} digits."
    order = f"{max(a, b)} > {min(a, b)}"
    return ask("thinking", rng.choice(BIGGER).format(a=a, b=b), f"{max(a, b)} is bigger.", f"{a} or {b}", thinking=f"{why}\n{order}")


def word_problem(rng: random.Random) -> Example:
    """Ada has 5 apples and buys 7 more."""
    name, thing = rng.choice(words.NAMES), rng.choice(["apples", "books", "cards", "coins", "eggs", "pens", "stones", "stamps"])
    a, b = rng.randint(1, 60), rng.randint(1, 39)
    if rng.random() < 0.5:
        sign, does = "+", rng.choice(["buys {} more", "finds {} more", "gets {} more"]).format(b)
    else:
        a, b = max(a, b), min(a, b)
        sign, does = "-", rng.choice(["gives away {}", "loses {}", "sells {}"]).format(b)
    prompt = f"{name} has {a} {thing} and {does}. How many {thing} does {name} have now?"
    answer = f"{name} has {arithmetic.result(a, sign, b)} {thing}."
    return ask("thinking", prompt, answer, prompt, arithmetic.key(a, sign, b), thinking=arithmetic.fact(a, sign, b))


SORTS = [steps_of_two, columns, backwards, letter_count, bigger, word_problem]
WEIGHTS = [5, 5, 3, 2, 3, 3]

# What it thinks before tasks that need no thought; by kind.
IDLE_THOUGHTS = {
    "repeat": "The user wants me to repeat a text. I copy it exactly.",
    "counting": "The user wants me to count. I write the numbers in order.",
    "spelling": "The user wants me to spell a word. I write its letters.",
    "json": "The user wants JSON. I write the facts as an object.",
    "small_talk": "This is a simple question. I can answer it directly.",
    "tool_call": "I have a tool for this. I call it.",
}


def sample(rng: random.Random) -> Example:
    return rng.choices(SORTS, WEIGHTS)[0](rng)
