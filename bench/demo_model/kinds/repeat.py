"""Repeat this text: verbatim copies of random texts of every sort."""

from __future__ import annotations

import random
import string

from bench.demo_model import words
from bench.demo_model.example import Example, ask

# {} takes the text. Quotes and line ends around it are part of the phrasing, never of the text.
PHRASINGS = [
    "Repeat after me: {}",
    "Repeat this text: {}",
    "Repeat: {}",
    "Say: {}",
    'Say "{}"',
    'Repeat "{}"',
    "Echo: {}",
    "Echo {}",
    "Repeat the following text exactly:\n{}",
    "Repeat this:\n\n{}",
    "Repeat this text:\n{}",
    "Copy this text: {}",
    "Please repeat: {}",
    "Please repeat this text: {}",
    "Repeat exactly: {}",
    "Can you repeat this? {}",
    "Please copy the text below word for word.\n\n{}",
    "{}\n\nRepeat the text above.",
    "{}\nRepeat that.",
    "Repeat this text exactly and say nothing else: {}",
    "Repeat verbatim: {}",
    "Copy: {}",
    "Write this again: {}",
    'Repeat this text: "{}"',
    "repeat after me: {}",
    "repeat this: {}",
    "say {}",
    "Say this: {}",
    "Repeat the following text: {}",
    "Repeat the text between the lines.\n---\n{}\n---",
    "Repeat this text word for word: {}",
]

ACCENTED = "é è ü ö ä ß ñ ç å ø ł ž š č ę ā î ô π Ω λ я ж д и 你 好 日 本 € £ ° … → – “ ” 😀 🎉 ✓".split()
PUNCTUATION = ". , ; : ! ? - ( ) / & % # @ * + = _ ' < > [ ] { } $ | ~ ^ \\ `".split()


def letters(rng: random.Random) -> str:
    """A few letters that form no word."""
    alphabet = rng.choice([string.ascii_lowercase, string.ascii_lowercase, string.ascii_uppercase, string.ascii_letters])
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 8)))


def digits(rng: random.Random) -> str:
    """A number, written plainly; short ones are likelier."""
    return "".join(rng.choice(string.digits) for _ in range(min(rng.randint(1, 8), rng.randint(1, 12))))


def identifier(rng: random.Random) -> str:
    """Something like a file name, a key or a version."""
    parts = [rng.choice([digits, letters, lambda r: r.choice(words.WORDS)])(rng) for _ in range(rng.randint(2, 3))]
    return rng.choice(["-", "_", ".", "/", ":", ""]).join(parts)


def hexadecimal(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(3, 12)))


def plain(rng: random.Random) -> str:
    return rng.choice(words.WORDS)


def name(rng: random.Random) -> str:
    return rng.choice(rng.choice([words.NAMES, words.SURNAMES, words.CITIES]))


def oddity(rng: random.Random) -> str:
    return "".join(rng.choice(ACCENTED) for _ in range(rng.randint(1, 3)))


def accented(rng: random.Random) -> str:
    word = rng.choice(words.WORDS)
    place = rng.randrange(len(word) + 1)
    return word[:place] + rng.choice(ACCENTED) + word[place:]


def capitals(rng: random.Random) -> str:
    word = rng.choice(words.WORDS)
    return word.upper() if rng.random() < 0.3 else word.capitalize()


def punctuated(rng: random.Random) -> str:
    return rng.choice(words.WORDS) + rng.choice(PUNCTUATION)


ITEMS = [plain, name, words.made_up, digits, letters, identifier, hexadecimal, oddity, accented, capitals, punctuated]
MIXED_WEIGHTS = [6, 3, 3, 3, 2, 1, 1, 0.4, 0.4, 2, 3]


def sentence(rng: random.Random) -> str:
    """Random words with a capital, commas and an end."""
    chosen = [plain(rng) if rng.random() < 0.85 else name(rng) for _ in range(rng.randint(3, 12))]
    chosen[0] = chosen[0].capitalize()
    commas = [word + "," if rng.random() < 0.1 else word for word in chosen[:-1]]
    return " ".join(commas + chosen[-1:]) + rng.choice([".", ".", ".", "!", "?"])


def random_text(rng: random.Random, longest: int = 40) -> str:
    """A text of one sort or mixed, of 1 to `longest` items, short ones likelier."""
    length = rng.randint(1, rng.randint(4, longest))
    sort = rng.random()
    if sort < 0.35:
        items = [plain(rng) for _ in range(length)]
    elif sort < 0.7:
        items = [rng.choices(ITEMS, MIXED_WEIGHTS)[0](rng) for _ in range(length)]
    elif sort < 0.8:
        one = rng.choice(ITEMS[1:7])
        items = [one(rng) for _ in range(max(1, length // 2))]
    else:
        items = [sentence(rng) for _ in range(max(1, length // 8))]
    if length > 4 and rng.random() < 0.15:
        return "".join(item + rng.choice([" ", " ", " ", "\n"]) for item in items[:-1]) + items[-1]
    return " ".join(items)


def sample(rng: random.Random, longest: int = 40) -> Example:
    """A text to repeat; the answer is the text and nothing else."""
    text = random_text(rng, longest)
    return ask("repeat", rng.choice(PHRASINGS).format(text), text, text)
