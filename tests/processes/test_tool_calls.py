"""The bundled model calls tools and thinks, over HTTP and through all processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.processes.server import Server

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city.", "parameters": SCHEMA}}
TIMER: Any = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer.",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 999}},
            "required": ["minutes"],
            "additionalProperties": False,
        },
    },
}
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
OPTIONS: Any = {"model": "demo", "temperature": 0, "max_tokens": 120}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with Server("--served-model-name", "demo") as server:
        server.ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            yield made


def test_it_calls_when_it_wants_to(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(messages=ASK, tools=[WEATHER, TIMER], **OPTIONS).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'}
    messages = [*ASK, choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(messages=messages, tools=[WEATHER, TIMER], **OPTIONS).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content


@pytest.mark.parametrize("tool", [WEATHER, TIMER], ids=["weather", "timer"])
@pytest.mark.parametrize("seed", range(3))
def test_it_calls_when_it_must(client: openai.OpenAI, tool: Any, seed: int) -> None:
    """At a high temperature a small model says anything; what it says is a valid call all the same."""
    options = {**OPTIONS, "temperature": 1.8, "seed": seed}
    name = tool["function"]["name"]
    choice: Any = {"type": "function", "function": {"name": name}}
    stream = client.chat.completions.create(messages=ASK, tools=[WEATHER, TIMER], tool_choice=choice, stream=True, **options)
    names, arguments, reason = [], "", None
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or []:
            names += [part.function.name] if part.function.name else []
            arguments += (part.function.arguments or "") if len(names) == 1 else ""
        reason = chunk.choices[0].finish_reason or reason
    assert set(names) == {name}
    assert reason in ("tool_calls", "length")
    if reason == "tool_calls" or len(names) > 1:
        jsonschema.validate(json.loads(arguments), tool["function"]["parameters"])


def test_it_thinks_when_asked_to(client: openai.OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "What is 12 + 7 - 5?"}]
    answer = client.chat.completions.create(messages=ask, reasoning_effort="high", **OPTIONS)
    message: Any = answer.choices[0].message
    assert message.reasoning
    assert "<think>" not in message.reasoning + (message.content or "")
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    silent: Any = client.chat.completions.create(messages=ask, reasoning_effort="none", **OPTIONS).choices[0].message
    assert not hasattr(silent, "reasoning")
