"""Plain text without a chat: little stories, counts and sayings, so that bare completion has something to say."""

from __future__ import annotations

import random
import string

from bench.demo_model import words
from bench.demo_model.example import Example
from bench.demo_model.kinds import counting

PLACES = ["a small village", "an old castle", "a quiet forest", "a house by the sea", "a big city", "a tower on a hill", "a green valley"]
HEROES = [
    "a little fox",
    "a brave girl",
    "a clever boy",
    "an old sailor",
    "a tiny dragon",
    "a kind baker",
    "a lonely robot",
    "a shy bear",
    "a young painter",
    "a wise owl",
]
WANTS = [
    "to see the sea",
    "to find a friend",
    "to learn to sing",
    "to bake the best bread",
    "to fly to the moon",
    "to read every book",
    "to find a golden key",
    "to build a boat",
]
TROUBLES = [
    "But the road was long and dark.",
    "But nobody would listen.",
    "But it began to rain.",
    "But the bridge was broken.",
    "But winter came early.",
    "But the door was locked.",
]
HELPERS = ["an old woman", "a talking bird", "a friendly wolf", "a small mouse", "a merchant with a red hat", "a child with a lantern"]
GIFTS = ["a map", "a warm coat", "a silver bell", "a piece of bread", "a lantern", "a kind word", "a small boat"]
ENDS = [
    "And they lived happily ever after.",
    "And so it was.",
    "From that day on, nobody was sad.",
    "And if they have not stopped, they are still dancing.",
    "The end.",
]


def story(rng: random.Random) -> str:
    """Six sentences about a hero."""
    name, hero = rng.choice(words.NAMES), rng.choice(HEROES)
    helper = rng.choice(HELPERS)
    return (
        f"Once upon a time, in {rng.choice(PLACES)}, there lived {hero} called {name}. {name} wanted {rng.choice(WANTS)}. "
        f"{rng.choice(TROUBLES)} One {rng.choice(['morning', 'evening', 'day', 'night'])}, {name} met {helper}. "
        f'"Take {rng.choice(GIFTS)}," said {helper}, "and do not be afraid." So {name} went on, day after day. '
        f"At last the wish came true. {rng.choice(ENDS)}"
    )


def count(rng: random.Random) -> str:
    first = rng.choice([1, 1, 1, 0, rng.randint(2, 90)])
    return counting.numbers(first, first + rng.randint(5, 30), rng.choice([1, 1, 1, 2]))


def saying(rng: random.Random) -> str:
    """Facts, lists and greetings, one to three of them."""
    country, capital = rng.choice(list(words.CAPITALS.items()))
    one, other = rng.choice(words.OPPOSITES)
    thing, colour = rng.choice(list(words.COLOURS.items()))
    lines = [
        f"The capital of {country} is {capital}.",
        f"The opposite of {one} is {other}.",
        f"The color of {thing} is {colour}.",
        "The days of the week are " + ", ".join(words.DAYS) + ".",
        "The months are " + ", ".join(words.MONTHS) + ".",
        " ".join(string.ascii_lowercase),
        ", ".join(string.ascii_uppercase),
        " ".join(words.NUMBER_WORDS[1:]),
        f"Hello, my name is {rng.choice(words.NAMES)} and I live in {rng.choice(words.CITIES)}.",
        "Hello, world!",
        "The quick brown fox jumps over the lazy dog.",
        "A quire is a gathering of pages.",
    ]
    return " ".join(rng.sample(lines, rng.randint(1, 3)))


def sample(rng: random.Random) -> Example:
    text = rng.choice([story, story, count, saying])(rng)
    return Example("plain", text=text, contents=(text,))
