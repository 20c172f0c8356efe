"""Counting up, down and by steps."""

from __future__ import annotations

import random

from bench.demo_model.example import Example, ask

UP = [
    "Count from {a} to {b}.",
    "Count from {a} to {b}",
    "count from {a} to {b}",
    "Please count from {a} to {b}.",
    "Count up from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "List the numbers from {a} to {b}.",
    "Write the numbers from {a} to {b}.",
    "Give me the numbers from {a} to {b}.",
]
FROM_ONE = ["Count to {b}.", "Count to {b}", "count to {b}", "Can you count to {b}?", "Please count to {b}."]
DOWN = [
    "Count down from {a} to {b}.",
    "count down from {a} to {b}",
    "Count backwards from {a} to {b}.",
    "Please count down from {a} to {b}.",
    "Can you count down from {a} to {b}?",
]
STEPPED = [
    "Count from {a} to {b} by {s}s.",
    "Count by {s}s from {a} to {b}.",
    "Count from {a} to {b} in steps of {s}.",
    "count by {s}s from {a} to {b}",
    "List every {s}th number from {a} to {b}.",
]


def numbers(first: int, last: int, step: int) -> str:
    """'7, 8, 9', the end included."""
    return ", ".join(str(n) for n in range(first, last + (1 if step > 0 else -1), step))


def sample(rng: random.Random) -> Example:
    """Up to about 25 numbers, none above 200."""
    way = rng.random()
    first = rng.randint(0, rng.choice([10, 30, 100, 175]))
    length = rng.randint(2, rng.choice([8, 14, 24]))
    if way < 0.2:
        first, last, step, phrasing = 1, length + 1, 1, rng.choice(FROM_ONE)
    elif way < 0.55:
        last, step, phrasing = first + length, 1, rng.choice(UP)
    elif way < 0.75:
        last, step, phrasing = first, -1, rng.choice(DOWN)
        first = last + length
    else:
        step, phrasing = rng.choice([2, 3, 5, 10]), rng.choice(STEPPED)
        first = rng.randint(0, 9) if step < 10 else rng.choice([0, 10, 20])
        last = first + step * min(length, 14)
    prompt = phrasing.format(a=first, b=last, s=abs(step))
    # Counting to a number is one of two dozen prompts: there the phrasing belongs to what is held out.
    content = prompt if way < 0.2 else f"{first} to {last} by {step}"
    return ask("counting", prompt, numbers(first, last, step), content)
