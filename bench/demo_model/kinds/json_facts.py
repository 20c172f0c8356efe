"""JSON from facts: the object's keys and values in the order in which the facts were told."""

from __future__ import annotations

import json
import random
from typing import Any

from bench.demo_model import words
from bench.demo_model.example import Example, ask

FIELDS = {
    "name": lambda rng: rng.choice(words.NAMES) if rng.random() < 0.7 else f"{rng.choice(words.NAMES)} {rng.choice(words.SURNAMES)}",
    "age": lambda rng: rng.randint(1, 99),
    "city": lambda rng: rng.choice(words.CITIES),
    "country": lambda rng: rng.choice(list(words.CAPITALS)),
    "job": lambda rng: rng.choice(words.JOBS),
    "food": lambda rng: rng.choice(words.FOODS),
    "color": lambda rng: rng.choice(words.COLOUR_NAMES),
    "pet": lambda rng: rng.choice(words.NOUNS),
    "year": lambda rng: rng.randint(1900, 2030),
    "price": lambda rng: rng.randint(1, 500),
    "count": lambda rng: rng.randint(0, 50),
    "item": lambda rng: rng.choice(words.NOUNS),
    "title": lambda rng: f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}",
    "day": lambda rng: rng.choice(words.DAYS),
    "id": lambda rng: rng.randint(1, 9999),
    "active": lambda rng: rng.random() < 0.5,
}
LISTED = [
    "{} -> JSON",
    "Turn this into JSON: {}",
    "Write this as JSON: {}",
    "Convert to JSON: {}",
    "JSON: {}",
    "{}\nGive me JSON.",
    "Make a JSON object: {}",
    "Give me JSON for: {}",
    "{} as JSON",
    "Please write this as JSON. {}",
    "to json: {}",
]
TOLD = [
    ("{name} is {age} years old and lives in {city}.", ["name", "age", "city"]),
    ("{name} lives in {city} and works as a {job}.", ["name", "city", "job"]),
    ("{name} is {age} and likes {food}.", ["name", "age", "food"]),
    ("{name} comes from {country} and likes {color}.", ["name", "country", "color"]),
    ("{name} has a pet {pet} and works as a {job}.", ["name", "pet", "job"]),
    ("The {item} costs {price} and there are {count} of them.", ["item", "price", "count"]),
]
TOLD_ASKS = [
    "{} Write that as JSON.",
    "Write as JSON: {}",
    "Turn this into JSON: {}",
    "Convert to JSON: {}",
    "{} -> JSON",
    "{}\nGive me JSON.",
]


def plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def listed(rng: random.Random, facts: dict[str, Any]) -> str:
    """The facts as a person might jot them down: 'Name: Ada, age 36, city Paris'."""
    style = rng.random()
    if style < 0.4:
        text = ", ".join(f"{k} {plain(v)}" for k, v in facts.items())
    elif style < 0.7:
        text = ", ".join(f"{k}: {plain(v)}" for k, v in facts.items())
    elif style < 0.85:
        text = ", ".join(f"{k}={plain(v)}" for k, v in facts.items())
    else:
        first, *rest = [f"{k} {plain(v)}" for k, v in facts.items()]
        text = ", ".join([first.replace(" ", ": ", 1), *rest])
    return text[0].upper() + text[1:] if rng.random() < 0.4 else text


def sample(rng: random.Random) -> Example:
    if rng.random() < 0.3:
        told, keys = rng.choice(TOLD)
        facts = {key: FIELDS[key](rng) for key in keys}
        prompt = rng.choice(TOLD_ASKS).format(told.format(**facts))
    else:
        keys = rng.sample(list(FIELDS), rng.randint(1, 5))
        if rng.random() < 0.5 and "name" not in keys:
            keys.insert(0, "name")
        facts = {key: FIELDS[key](rng) for key in keys}
        prompt = rng.choice(LISTED).format(listed(rng, facts))
    return ask("json", prompt, json.dumps(facts, ensure_ascii=False), json.dumps(facts))
