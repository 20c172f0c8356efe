"""Sums, differences and products in one step. The answer restates the sum, so that the operands stand beside it."""

from __future__ import annotations

import random

from bench.demo_model.example import Example, ask

PHRASINGS = {
    "+": ["What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?", "{a} plus {b}", "What is the sum of {a} and {b}?"],
    "-": ["What is {a} minus {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?", "{a} minus {b}", "Take {b} from {a}."],
    "*": ["What is {a} times {b}?", "Multiply {a} by {b}.", "How much is {a} times {b}?", "{a} times {b}", "{a} x {b}"],
}
WITH_SIGN = [
    "What is {a} {o} {b}?",
    "{a} {o} {b} =",
    "{a} {o} {b}",
    "{a}{o}{b}",
    "{a}{o}{b}=",
    "What is {a}{o}{b}?",
    "Compute {a} {o} {b}.",
    "what is {a} {o} {b}",
    "what's {a} {o} {b}?",
    "How much is {a} {o} {b}?",
    "Calculate {a} {o} {b}",
    "{a} {o} {b}?",
    "Solve {a} {o} {b}.",
]


def result(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def fact(a: int, sign: str, b: int) -> str:
    """The canonical way to write it: '12 + 30 = 42'."""
    return f"{a} {sign} {b} = {result(a, sign, b)}"


def key(a: int, sign: str, b: int) -> str:
    """What decides whether the operands of a sum or difference are held out; a sum and its mirror image go together."""
    return f"{min(a, b)}+{max(a, b)}" if sign == "+" else f"{a}{sign}{b}"


def question(rng: random.Random, a: int, sign: str, b: int) -> str:
    phrasing = rng.choice(WITH_SIGN + PHRASINGS[sign] * 2)
    return phrasing.format(a=a, o=sign, b=b)


def operands(rng: random.Random, digits: int) -> tuple[int, str, int]:
    """A pair of at most `digits` digits, and its sign; differences are rarely negative."""
    sign = rng.choices("+-*", [5, 5, 2])[0]
    if sign == "*":
        return rng.randint(0, 12), sign, rng.randint(0, 12)
    a, b = (rng.randint(0, 10 ** rng.choice([digits, digits, digits, 1]) - 1) for _ in range(2))
    if sign == "-" and a < b and rng.random() < 0.97:
        a, b = b, a
    return a, sign, b


def sample(rng: random.Random) -> Example:
    """Operands of one or two digits, tables to twelve."""
    a, sign, b = operands(rng, 2)
    prompt = question(rng, a, sign, b)
    # Tables are learnt by heart, nothing leads from one product to the next: of those it is the wording that is held out.
    return ask("arithmetic", prompt, fact(a, sign, b), prompt if sign == "*" else key(a, sign, b))


def sample_three_digits(rng: random.Random) -> Example:
    """Operands of up to three digits, added or subtracted in one go."""
    a, sign, b = operands(rng, 3)
    while sign == "*":
        a, sign, b = operands(rng, 3)
    return ask("arithmetic_three_digits", question(rng, a, sign, b), fact(a, sign, b), key(a, sign, b))
