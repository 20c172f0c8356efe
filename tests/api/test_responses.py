"""/v1/responses through OpenAI's client and raw: answers, and events in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.api.responses import KEY, PATH, events
from tests.api.server import ApiServer

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17}}\n</tool_call>'
TOOL: Any = {"type": "function", "name": "add", "strict": False, "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def client(scripted: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="sk-one", max_retries=0) as made:
        yield made


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="demo", input="hello 😀", instructions="be brief", max_output_tokens=30, metadata={"a": "b"}, temperature=0.5
    )
    assert (answer.output_text, answer.status, answer.error, answer.incomplete_details) == ("hello 😀", "completed", None, None)
    assert (answer.temperature, answer.metadata, answer.instructions, answer.max_output_tokens) == (0.5, {"a": "b"}, "be brief", 30)
    assert answer.usage is not None and answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    short = client.responses.create(model="demo", input="one two three", max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None and short.incomplete_details.reason == "max_output_tokens"
    assert short.output[0].to_dict()["status"] == "incomplete"


def test_items(client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two", "annotations": []}]},
        {"role": "user", "content": "the last"},
    ]
    assert client.responses.create(model="demo", input=items).output_text == "the last"


def test_the_events(scripted: ApiServer) -> None:
    raw = scripted.request("POST", PATH, {"input": 'say "this" 😀', "stream": True}, KEY)[2]
    found = events(raw)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    names = [event["type"].removeprefix("response.") for event in found]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert "".join(event["delta"] for event in found[4:-4]) == found[-4]["text"] == 'say "this" 😀'
    last = found[-1]["response"]
    assert last["output"] == [found[-2]["item"]] and last["status"] == "completed"
    assert {event["item_id"] for event in found if "item_id" in event} == {last["output"][0]["id"]}
    # The same answer without events has the same members.
    whole = scripted.post(PATH, {"input": 'say "this" 😀'}, KEY)[1]
    assert set(whole) == set(last)
    assert whole["output"][0] | {"id": ""} == last["output"][0] | {"id": ""}


def test_logprobs(client: openai.OpenAI, scripted: ApiServer) -> None:
    text = "one 😀 two"
    options: dict[str, Any] = {"model": "demo", "input": text, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = client.responses.create(**options)
    content: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert b"".join(bytes(each.bytes) for each in content.logprobs).decode() == text
    for each in content.logprobs:
        assert len(each.top_logprobs) == 2 and each.top_logprobs[0].logprob == each.logprob
    found = events(scripted.request("POST", PATH, {**options, "stream": True}, KEY)[2])
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == text
    streamed = [each for event in deltas for each in event["logprobs"]]
    assert streamed == [each.to_dict() for each in content.logprobs]
    [done] = [event for event in found if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == streamed == found[-1]["response"]["output"][0]["content"][0]["logprobs"]
    # Either field alone asks for them; nobody else gets any.
    assert client.responses.create(model="demo", input="x", top_logprobs=1).output[0].content[0].logprobs  # type: ignore[union-attr]
    assert client.responses.create(model="demo", input="x").output[0].content[0].logprobs == []  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_text(scripted: ApiServer, stream: bool) -> None:
    body = {"input": f"<think>\nhm\n</think>\nwell {CALL}", "tools": [TOOL], "top_logprobs": 1, "stream": stream}
    raw = scripted.request("POST", PATH, body, KEY)[2]
    response = events(raw)[-1]["response"] if stream else json.loads(raw)
    [message] = [item for item in response["output"] if item["type"] == "message"]
    tokens = "".join(each["token"] for each in message["content"][0]["logprobs"])
    assert "well" in tokens and "hm" not in tokens and "add" not in tokens


def test_a_conversation_that_is_too_long_loses_its_first_turns(scripted: ApiServer, client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "system", "content": "keep this"}]
    for number in range(12):
        turns.append({"role": "user", "content": f"turn {number} " + "word " * 150})
        turns.append({"type": "function_call", "call_id": f"c{number}", "name": "add", "arguments": "{}"})
        turns.append({"type": "function_call_output", "call_id": f"c{number}", "output": "2"})
    turns.append({"role": "user", "content": "the last"})
    status, answer = scripted.post(PATH, {"input": turns}, KEY)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    made = client.responses.create(model="demo", input=turns, truncation="auto", max_output_tokens=20)
    assert (made.output_text, made.truncation) == ("the last", "auto")
    assert made.usage is not None
    # As few as possible are left out: one turn more would not have fitted.
    assert 2048 - 200 < made.usage.input_tokens < 2048
    status, answer = scripted.post(PATH, {"input": "word " * 3000, "truncation": "auto"}, KEY)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), "a single turn is not cut"
    short = client.responses.create(model="demo", input="hi", truncation="auto")
    assert short.output_text == "hi"


def test_the_clients_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="demo", input="one two three") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "one two three"


def test_async_streams(scripted: ApiServer) -> None:
    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key="sk-two", max_retries=0) as client:

            async def one(text: str) -> str:
                stream = await client.responses.create(model="demo", input=text, stream=True, store=False)
                return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

            return await asyncio.gather(*(one(f"number {place}") for place in range(8)))

    assert asyncio.run(talk()) == [f"number {place}" for place in range(8)]


def test_tools(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="demo", input="calling " + CALL, tools=[TOOL])
    assert [item.type for item in answer.output] == ["message", "function_call"]
    call = answer.output[1]
    assert call.type == "function_call" and (call.name, json.loads(call.arguments)) == ("add", {"a": 17})
    with client.responses.stream(model="demo", input="calling " + CALL, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds and "response.function_call_arguments.done" in kinds
    assert final.output[1].type == "function_call" and json.loads(final.output[1].arguments) == {"a": 17}
    # The call comes back by its response's id, with what came of it.
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18"}, {"role": "user", "content": "and?"}]
    assert client.responses.create(model="demo", input=result, previous_response_id=answer.id, tools=[TOOL]).output_text == "and?"


def test_reasoning(scripted: ApiServer, client: openai.OpenAI) -> None:
    said = "<think>\nhm\n</think>\nyes"
    answer = client.responses.create(model="demo", input=said, reasoning={"effort": "low"})
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].to_dict()["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert answer.output_text == "yes"
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens > 0
    found = events(scripted.request("POST", PATH, {"input": said, "stream": True, "reasoning": {"effort": "low"}}, KEY)[2])
    assert "".join(event["delta"] for event in found if event["type"] == "response.reasoning_text.delta") == "hm"
    assert found[-1]["response"]["usage"]["output_tokens_details"] == {
        "reasoning_tokens": answer.usage.output_tokens_details.reasoning_tokens
    }


def test_structured_output(client: openai.OpenAI, scripted: ApiServer) -> None:
    """The worker would say something else."""
    schema = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    answer = client.responses.create(model="demo", input="nothing of the sort", text={"format": form})
    assert json.loads(answer.output_text)["ok"] in ("yes", "no")
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "json_schema"
    called = client.responses.create(
        model="demo", input="no", tools=[{**TOOL, "name": "tell", "parameters": schema}], tool_choice={"type": "function", "name": "tell"}
    )
    assert {item.type for item in called.output} == {"function_call"}
    status, refused = scripted.post(PATH, {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": 5}}}, KEY)
    assert status == 400, refused


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
    ({"input": [{"type": "function_call"}]}, "input"),
    ({"input": [{"type": "function_call_output"}]}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"truncation": "middle"}, "truncation"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"include": ["web_search_call.action.sources"]}, "include"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"background": True, "store": False}, "background"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"metadata": {str(place): "" for place in range(17)}}, "metadata"),
    ({"reasoning": {"effort": 3}}, "reasoning"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1.5}, "max_output_tokens"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ({"temperature": 3}, "temperature"),
    ({"timeout": 0}, "timeout"),
]


@pytest.mark.parametrize("change, param", WRONG, ids=[str(change)[:60] for change, _ in WRONG])
def test_refused_by_name(scripted: ApiServer, change: dict[str, Any], param: str) -> None:
    status, answer = scripted.post(PATH, {"input": "x", **change}, KEY)
    assert status == 400, answer
    assert answer["error"]["param"] == param, answer
