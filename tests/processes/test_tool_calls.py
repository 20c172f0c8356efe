"""The bundled model calls tools and thinks, over HTTP and from Python, and through all processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from quire import LLM, AsyncLLM, InvalidRequestError, SamplingParams, StructuredOutputsParams
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


THINK: Any = [{"role": "user", "content": "What is 12 + 7 - 5?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=120)


@pytest.fixture(scope="module")
def llm(client: openai.OpenAI) -> Iterator[LLM]:
    """With the kernels that the client's server has: they are at hand by then."""
    with LLM(dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    # float32: two ways to the same text must not part at a near tie.
    with Server("--served-model-name", "demo", "--dtype", "float32") as server:
        server.ready().with_kernels()
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
    answer = client.chat.completions.create(messages=THINK, reasoning_effort="high", **OPTIONS)
    message: Any = answer.choices[0].message
    assert message.reasoning
    assert "<think>" not in message.reasoning + (message.content or "")
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    silent: Any = client.chat.completions.create(messages=THINK, reasoning_effort="none", **OPTIONS).choices[0].message
    assert not hasattr(silent, "reasoning")


ASKED: Any = [
    (ASK, {"tools": [WEATHER, TIMER]}),
    (
        ASK,
        {"tools": [WEATHER, TIMER], "tool_choice": {"type": "function", "function": {"name": "set_timer"}}, "parallel_tool_calls": False},
    ),
    (ASK, {"tools": [WEATHER], "tool_choice": "none"}),
    (THINK, {"reasoning_effort": "high"}),
    (THINK, {"reasoning_effort": "high", "include_reasoning": False}),
    (THINK, {"chat_template_kwargs": {"enable_thinking": False}}),
    (ASK, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}),
    (ASK, {"response_format": {"type": "json_object"}, "tools": [WEATHER, TIMER]}),
    (ASK, {"response_format": {"type": "json_object"}, "tools": [WEATHER, TIMER], "tool_choice": "required"}),
    (THINK, {"response_format": {"type": "json_object"}, "tools": [WEATHER], "reasoning_effort": "high"}),
    ([*ASK, {"role": "assistant", "content": "The weather"}], {"continue_final_message": True, "add_generation_prompt": False}),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_it_calls_or_answers_in_the_format_asked_for(client: openai.OpenAI, strict: bool, seed: int) -> None:
    """At a high temperature a small model says anything: either a document of the schema, or calls."""
    tools = [{**tool, "function": {**tool["function"], "strict": strict}} for tool in (WEATHER, TIMER)]
    form: Any = {"type": "json_schema", "json_schema": {"name": "timer", "schema": TIMER["function"]["parameters"], "strict": True}}
    options = {**OPTIONS, "temperature": 1.6, "seed": seed, "max_tokens": 300}
    choice = client.chat.completions.create(messages=ASK, tools=tools, response_format=form, **options).choices[0]
    if choice.finish_reason == "length":
        return
    if choice.message.tool_calls:
        assert not choice.message.content and choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            [tool] = [tool for tool in tools if tool["function"]["name"] == call.function.name]
            arguments = json.loads(call.function.arguments)
            assert isinstance(arguments, dict)
            if strict:
                jsonschema.validate(arguments, tool["function"]["parameters"])
    else:
        jsonschema.validate(json.loads(choice.message.content), TIMER["function"]["parameters"])


def test_the_clients_own_parse_with_tools(client: openai.OpenAI) -> None:
    """It makes tools strict and sends a schema beside them."""

    class Report(pydantic.BaseModel):
        city: str

    class get_weather(pydantic.BaseModel):
        """Get the weather in a city."""

        city: str

    tools = [openai.pydantic_function_tool(get_weather)]
    message = client.chat.completions.parse(messages=ASK, tools=tools, response_format=Report, **OPTIONS).choices[0].message
    [call] = message.tool_calls
    assert call.function.parsed_arguments == get_weather(city="Paris")
    plain = client.chat.completions.parse(messages=ASK, tools=tools, tool_choice="none", response_format=Report, **OPTIONS)
    assert isinstance(plain.choices[0].message.parsed, Report)


def seen(message: Any) -> dict[str, Any]:
    """OpenAI's object of a message without what is nothing or drawn by lot."""
    found = {name: value for name, value in message.items() if value and name != "reasoning_content"}
    for call in found.get("tool_calls", []):
        del call["id"]
    return found


@pytest.mark.parametrize("messages, options", ASKED, ids=range(len(ASKED)))
def test_python_answers_as_http_does(client: openai.OpenAI, llm: LLM, messages: Any, options: Any) -> None:
    """Whole, as it grows, and piece by piece."""
    over_http: Any = client.chat.completions.create(messages=messages, extra_body=options, **OPTIONS)
    wanted = seen(over_http.choices[0].message.model_dump())
    [output] = llm.chat(messages, GREEDY, use_tqdm=False, **options)
    [answer] = output.outputs
    assert answer.message is not None
    assert seen(answer.message.as_input()) == wanted
    assert answer.finish_reason == over_http.choices[0].finish_reason
    details = over_http.usage.completion_tokens_details
    assert answer.reasoning_tokens == (details.reasoning_tokens if details else 0)
    assert len(answer.token_ids) == over_http.usage.completion_tokens

    async def grown(delta: bool) -> list[Any]:
        engine = AsyncLLM()
        engine._engine = llm._engine
        return [each.outputs[0] async for each in engine.chat(messages, GREEDY, delta=delta, **options)]

    *_, last = asyncio.run(grown(False))
    assert seen(last.message.as_input()) == wanted
    assert (last.finish_reason, last.reasoning_tokens, last.text) == (answer.finish_reason, answer.reasoning_tokens, answer.text)
    pieces = asyncio.run(grown(True))
    assert "".join(each.message.content or "" for each in pieces) == (wanted.get("content") or "")
    assert "".join(each.message.reasoning or "" for each in pieces) == (wanted.get("reasoning") or "")
    parts = [call for each in pieces for call in each.message.calls]
    assert "".join(part.arguments for part in parts) == "".join(c["function"]["arguments"] for c in wanted.get("tool_calls", []))
    assert [part.name for part in parts if part.id] == [call["function"]["name"] for call in wanted.get("tool_calls", [])]


def test_python_goes_on_after_a_call(llm: LLM) -> None:
    [output] = llm.chat(ASK, GREEDY, use_tqdm=False, tools=[WEATHER, TIMER])
    message = output.outputs[0].message
    assert message is not None
    result = {"role": "tool", "tool_call_id": message.calls[0].id, "content": '{"temperature": 21, "sky": "sunny"}'}
    [second] = llm.chat([*ASK, message.as_input(), result], GREEDY, use_tqdm=False, tools=[WEATHER, TIMER])
    assert second.outputs[0].message is not None
    assert second.outputs[0].message.content and not second.outputs[0].message.calls


REFUSED: Any = [
    {"tools": []},
    {"tools": [{"type": "function", "function": {"name": "two words"}}]},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
    {"tool_choice": "required"},
    {"tools": "weather"},
    {"reasoning_effort": "enormous"},
    {"response_format": {"type": "poem"}},
    {
        "response_format": {"type": "structural_tag", "triggers": ["<"], "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}]},
        "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}],
    },
    {"chat_template_kwargs": {"messages": []}},
    {"messages": []},
    {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"truncate_prompt_tokens": 0},
    {"add_generation_prompt": True, "continue_final_message": True},
]


@pytest.mark.parametrize("change", REFUSED, ids=range(len(REFUSED)))
def test_python_refuses_what_http_refuses_in_the_same_words(client: openai.OpenAI, llm: LLM, change: Any) -> None:
    body = {"messages": ASK, **change}
    with pytest.raises(openai.BadRequestError) as over_http:
        client.chat.completions.create(**{**OPTIONS, "messages": body["messages"]}, extra_body=change)
    engine = AsyncLLM()
    engine._engine = llm._engine
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(anext(engine.chat(**body)))  # type: ignore[arg-type]
    assert (caught.value.message, caught.value.param) == (over_http.value.body["message"], over_http.value.param)  # type: ignore[index]


def test_what_only_python_can_get_wrong(llm: LLM) -> None:
    with pytest.raises(TypeError, match="tool_chioce"):
        llm.chat(ASK, tool_chioce="auto")  # type: ignore[call-arg]
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    with pytest.raises(InvalidRequestError, match="one constraint") as caught:
        llm.chat(ASK, params, response_format={"type": "json_object"}, use_tqdm=False)
    assert caught.value.param == "response_format"
    [silent] = llm.chat(ASK, SamplingParams(max_tokens=4, detokenize=False), tools=[WEATHER], use_tqdm=False)
    assert silent.outputs[0].text == "" and len(silent.outputs[0].token_ids) == 4
