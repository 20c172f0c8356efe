"""Tool calls: schemas in the system turn, a wish, the call; or the tool's result and a sentence about it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.demo_model import words
from bench.demo_model.example import Example, ToolCall, Turn

Value = Callable[[random.Random], Any]


@dataclass(frozen=True)
class Argument:
    """An argument: the names it may have in a schema, its JSON type, and its values."""

    names: tuple[str, ...]
    type: str
    value: Value


@dataclass(frozen=True)
class Skill:
    """Something a tool can do: names and wishes to choose among, and how its result is told."""

    names: tuple[str, ...]
    description: str
    arguments: tuple[Argument, ...]
    wishes: tuple[str, ...]
    results: tuple[tuple[Callable[[random.Random], dict[str, Any]], str], ...] = ()


def city(rng: random.Random) -> str:
    return rng.choice(words.CITIES)


def topic(rng: random.Random) -> str:
    return " ".join(rng.sample(words.WORDS, rng.randint(1, 3)))


def expression(rng: random.Random) -> str:
    return f"{rng.randint(1, 999)} {rng.choice('+-*/')} {rng.randint(1, 99)}"


def phrase(rng: random.Random) -> str:
    return " ".join(rng.sample(words.WORDS, rng.randint(2, 6)))


SKILLS = (
    Skill(
        ("get_weather", "weather", "get_current_weather"),
        "Get the weather in a city.",
        (Argument(("city", "location", "place"), "string", city),),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "weather in {0}",
            "What's the weather like in {0} today?",
            "Is it raining in {0}?",
            "Tell me the weather in {0}.",
        ),
        (
            (
                lambda r: {"temperature": r.randint(-10, 38), "sky": r.choice(["sunny", "cloudy", "rainy", "windy"])},
                "It is {temperature} degrees and {sky} in {0}.",
            ),
        ),
    ),
    Skill(
        ("calculator", "calculate", "compute"),
        "Compute an arithmetic expression.",
        (Argument(("expression", "formula"), "string", expression),),
        ("What is {0}?", "Compute {0}.", "Calculate {0}", "Use the calculator: {0}", "How much is {0}?"),
        ((lambda r: {"result": r.randint(0, 9999)}, "{0} = {result}"),),
    ),
    Skill(
        ("search", "web_search", "search_web"),
        "Search the web.",
        (Argument(("query", "q", "text"), "string", topic),),
        ("Search for {0}.", "Search the web for {0}", "Look up {0}.", "Find something about {0}.", "Please search for {0}"),
        ((lambda r: {"results": r.randint(1, 900)}, "I found {results} results for {0}."),),
    ),
    Skill(
        ("set_timer", "timer", "start_timer"),
        "Set a timer.",
        (Argument(("minutes", "duration"), "integer", lambda r: r.randint(1, 90)),),
        ("Set a timer for {0} minutes.", "Timer for {0} minutes", "Wake me in {0} minutes.", "Start a {0} minute timer."),
        ((lambda r: {"status": "ok"}, "The timer is set for {0} minutes."),),
    ),
    Skill(
        ("translate", "translate_text"),
        "Translate a text.",
        (
            Argument(("text", "sentence"), "string", phrase),
            Argument(("language", "target"), "string", lambda r: r.choice(["French", "German", "Spanish", "Italian", "Polish", "Greek"])),
        ),
        ('Translate "{0}" to {1}.', 'How do you say "{0}" in {1}?', 'Please translate "{0}" into {1}.'),
    ),
    Skill(
        ("send_message", "message", "send_text"),
        "Send a message to a person.",
        (
            Argument(("to", "recipient", "name"), "string", lambda r: r.choice(words.NAMES)),
            Argument(("message", "body", "text"), "string", phrase),
        ),
        ('Send a message to {0}: "{1}"', 'Tell {0} "{1}".', 'Write to {0}: "{1}"'),
        ((lambda r: {"status": "sent"}, "I sent the message to {0}."),),
    ),
    Skill(
        ("play_music", "play_song", "play"),
        "Play music.",
        (Argument(("song", "title"), "string", lambda r: f"{r.choice(words.ADJECTIVES)} {r.choice(words.NOUNS)}"),),
        ('Play "{0}".', 'Play the song "{0}".', 'I want to hear "{0}".'),
        ((lambda r: {"status": "playing"}, 'I am playing "{0}".'),),
    ),
    Skill(
        ("set_alarm", "alarm"),
        "Set an alarm.",
        (
            Argument(("hour",), "integer", lambda r: r.randint(0, 23)),
            Argument(("day", "weekday"), "string", lambda r: r.choice(words.DAYS)),
        ),
        ("Set an alarm for {0} on {1}.", "Wake me at {0} on {1}.", "Alarm at {0} on {1}"),
        ((lambda r: {"status": "ok"}, "The alarm is set for {0} on {1}."),),
    ),
    Skill(
        ("convert_currency", "exchange"),
        "Convert money.",
        (
            Argument(("amount", "value"), "integer", lambda r: r.randint(1, 999)),
            Argument(("from", "source"), "string", lambda r: r.choice(["USD", "EUR", "GBP", "JPY"])),
            Argument(("to", "target"), "string", lambda r: r.choice(["CHF", "NOK", "INR", "PLN"])),
        ),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Change {0} {1} into {2}."),
        ((lambda r: {"amount": r.randint(1, 9999)}, "{0} {1} is {amount} {2}."),),
    ),
    Skill(
        ("get_time", "time", "current_time"),
        "Get the time in a city.",
        (Argument(("city", "place", "timezone"), "string", city),),
        ("What time is it in {0}?", "Tell me the time in {0}.", "time in {0}"),
        ((lambda r: {"time": f"{r.randint(0, 23)}:{r.randint(10, 59)}"}, "It is {time} in {0}."),),
    ),
)

VERBS = "get set find open close start stop add remove update check list count show make move send read".split()


@dataclass(frozen=True)
class Tool:
    """A tool as one conversation sees it: names chosen, schema made."""

    name: str
    arguments: tuple[str, ...]
    values: tuple[Value, ...]
    schema: dict[str, Any]
    skill: Skill | None


def schema(name: str, description: str, arguments: list[tuple[str, str]]) -> dict[str, Any]:
    """The OpenAI form of a tool."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": kind} for argument, kind in arguments},
                "required": [argument for argument, _ in arguments],
            },
        },
    }


def known(rng: random.Random) -> Tool:
    """One of the skills, under one of its names."""
    skill = rng.choice(SKILLS)
    name = rng.choice(skill.names)
    names = [rng.choice(argument.names) for argument in skill.arguments]
    made = schema(name, skill.description, [(n, a.type) for n, a in zip(names, skill.arguments)])
    return Tool(name, tuple(names), tuple(a.value for a in skill.arguments), made, skill)


def invented(rng: random.Random) -> Tool:
    """A tool nobody has seen, so that names are read from the schema and not remembered."""
    verb, noun = rng.choice(VERBS), rng.choice(words.NOUNS)
    names = rng.sample(words.NOUNS + words.COLOUR_NAMES + ["name", "id", "size", "count", "key", "value"], rng.randint(1, 3))
    kinds = [rng.choice(["string", "integer"]) for _ in names]
    values: list[Value] = [(lambda r: r.choice(words.WORDS)) if kind == "string" else (lambda r: r.randint(0, 999)) for kind in kinds]
    made = schema(f"{verb}_{noun}", f"{verb.capitalize()} a {noun}.", list(zip(names, kinds)))
    return Tool(f"{verb}_{noun}", tuple(names), tuple(values), made, None)


def wish(rng: random.Random, tool: Tool, values: list[Any]) -> str:
    """How a person asks for this call."""
    if tool.skill:
        return rng.choice(tool.skill.wishes).format(*values)
    pairs = " and ".join(f"{name} {value}" for name, value in zip(tool.arguments, values))
    return rng.choice(["Use {} with {}.", "Call {} with {}.", "Please call {} with {}."]).format(tool.name, pairs)


def tools_of(rng: random.Random) -> tuple[list[Tool], Tool]:
    """One to three tools in any order, and the one that will be wanted."""
    chosen = [known(rng) if rng.random() < 0.65 else invented(rng) for _ in range(rng.choice([1, 1, 2, 2, 3]))]
    # Two tools of one skill would make the right call a matter of taste.
    distinct = {id(tool.skill) if tool.skill else tool.name: tool for tool in chosen}
    listed = list(distinct.values())
    return listed, rng.choice(listed)


def sample(rng: random.Random) -> Example:
    """A wish and its call, or two wishes and both calls."""
    listed, tool = tools_of(rng)
    values = [value(rng) for value in tool.values]
    prompt, calls = wish(rng, tool, values), [ToolCall(tool.name, dict(zip(tool.arguments, values)))]
    if rng.random() < 0.15:
        other = rng.choice(listed)
        more = [value(rng) for value in other.values]
        asked = wish(rng, other, more)
        prompt = f"{prompt} {rng.choice(['And then:', 'Also:', 'And:', ''])} {asked}".replace("  ", " ")
        calls.append(ToolCall(other.name, dict(zip(other.arguments, more))))
    turns = (Turn("user", prompt), Turn("assistant", calls=tuple(calls)))
    return Example("tool_call", turns, (turns[-1].said(),), tuple(t.schema for t in listed), contents=(f"{tool.name}: {prompt}",))


def sample_result(rng: random.Random) -> Example:
    """The tool has answered: say so in a sentence."""
    listed, tool = tools_of(rng)
    while not (tool.skill and tool.skill.results):
        listed, tool = tools_of(rng)
    values = [value(rng) for value in tool.values]
    make, sentence = rng.choice(tool.skill.results)
    result = make(rng)
    call = ToolCall(tool.name, dict(zip(tool.arguments, values)))
    answer = sentence.format(*values, **result)
    turns = (
        Turn("user", wish(rng, tool, values)),
        Turn("assistant", calls=(call,)),
        Turn("tool", json.dumps(result)),
        Turn("assistant", answer),
    )
    return Example("tool_result", turns, (answer,), tuple(t.schema for t in listed), contents=(f"{call.text()} {result}",))
