"""Spelling words letter by letter."""

from __future__ import annotations

import random

from bench.demo_model import words
from bench.demo_model.example import Example, ask

PHRASINGS = [
    "Spell {}",
    "Spell the word {}.",
    "Spell {}.",
    "How do you spell {}?",
    "Please spell {}.",
    'Spell "{}".',
    "spell {}",
    "Can you spell {}?",
    'How is "{}" spelled?',
    "Spell {} letter by letter.",
    "Spell this word: {}",
    "how do you spell {}?",
    "What are the letters of {}?",
]

SEVERAL = ["Spell these words: {}", "Spell {}.", "Spell each word: {}", "Please spell these words: {}"]


def spelled(word: str) -> str:
    """'c-a-t'."""
    return "-".join(word)


def any_word(rng: random.Random) -> tuple[str, bool]:
    """A word, and whether it is made up. Only made-up ones can be held out: a real word may be one token, opaque unless seen."""
    if rng.random() < 0.5:
        return words.made_up(rng, 2, 3), True
    return rng.choice(words.SPELLED), False


def sample(rng: random.Random) -> Example:
    """One word, or now and then a list of words, answered line by line."""
    count = rng.choice([1, 1, 1, 2, 3, 4])
    chosen = [any_word(rng) for _ in range(count)]
    if count > 1:
        prompt = rng.choice(SEVERAL).format(", ".join(word for word, _ in chosen))
    else:
        prompt = rng.choice(PHRASINGS).format(chosen[0][0])
    contents = [word for word, invented in chosen if invented]
    return ask(
        "spelling", prompt, "\n".join(spelled(word) for word, _ in chosen), *(contents if len(contents) == count else [prompt, *contents])
    )
