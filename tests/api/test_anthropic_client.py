"""Anthropic's own client library against our server, and what it does not show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.api.server import ApiServer

PATH = "/v1/messages"
KEY = {"x-api-key": "sk-one", "anthropic-version": "2023-06-01"}
TOOL = {"name": "add", "description": "adds", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17}}\n</tool_call>'


def user(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(scripted: ApiServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted.url, api_key="sk-one", max_retries=0) as made:
        yield made


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="demo", max_tokens=50, system="be brief", messages=user("hello 😀 world"))
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "hello 😀 world"}]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("end_turn", None, "assistant")
    assert answer.usage.output_tokens > 3 and answer.usage.cache_read_input_tokens is not None
    count = client.messages.count_tokens(model="demo", system="be brief", messages=user("hello 😀 world"))
    assert count.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_a_stream_gives_what_an_answer_gives(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="demo", max_tokens=50, messages=user('say "this" \\ 😀\nand that')) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == 'say "this" \\ 😀\nand that'
    assert final.content[0].to_dict() == {"type": "text", "text": text}
    assert (final.stop_reason, final.usage.output_tokens > 3) == ("end_turn", True)


def test_the_events_are_named_and_in_order(scripted: ApiServer) -> None:
    status, headers, raw = scripted.request("POST", PATH, {"max_tokens": 9, "messages": user("one two"), "stream": True}, KEY)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    names = []
    for part in raw.decode().split("\n\n")[:-1]:
        name, data = part.split("\n")
        names.append(name.removeprefix("event: "))
        assert json.loads(data.removeprefix("data: "))["type"] == names[-1]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}


def test_an_async_stream(scripted: ApiServer) -> None:
    async def talk() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=scripted.url, auth_token="sk-two", max_retries=0) as client:

            async def one(text: str) -> str:
                answer = await client.messages.create(model="demo", max_tokens=50, messages=user(text), stream=True)
                return "".join([each.delta.text async for each in answer if each.type == "content_block_delta"])

            return await asyncio.gather(*(one(f"number {place}") for place in range(8)))

    assert asyncio.run(talk()) == [f"number {place}" for place in range(8)]


def test_stop_reasons(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="demo", max_tokens=50, messages=user("one two END three"), stop_sequences=["END", "x"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")
    assert answer.content[0].text == "one two "
    assert client.messages.create(model="demo", max_tokens=2, messages=user("one two three")).stop_reason == "max_tokens"
    long = client.messages.create(model="demo", max_tokens=10_000, messages=user("word " * 1500), extra_body={"chat_template_kwargs": None})
    assert long.stop_reason == "model_context_window_exceeded"


def test_turns(client: anthropic.Anthropic) -> None:
    """Blocks, neighbours of one role, tool calls with their results, thoughts, and an answer that is begun for the model."""
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "b"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "calling"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]},
                {"type": "text", "text": "last one"},
            ],
        },
    ]
    answer = client.messages.create(model="demo", max_tokens=30, messages=messages)
    assert answer.content[0].text == "last one"
    # What is begun for the model shows in the prompt, and not in the answer.
    begun = client.messages.count_tokens(model="demo", messages=[*user("x"), {"role": "assistant", "content": "y"}])
    assert begun.input_tokens == client.messages.count_tokens(model="demo", messages=user("x")).input_tokens + 1


def test_tools(client: anthropic.Anthropic) -> None:
    arguments: dict[str, Any] = {"model": "demo", "max_tokens": 90, "messages": user("calling " + CALL), "tools": [TOOL]}
    answer = client.messages.create(**arguments)
    assert answer.stop_reason == "tool_use"
    assert [block.type for block in answer.content] == ["text", "tool_use"]
    assert (answer.content[1].name, answer.content[1].input) == ("add", {"a": 17})
    with client.messages.stream(**arguments) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert [block.to_dict() | {"id": ""} for block in final.content] == [block.to_dict() | {"id": ""} for block in answer.content]
    off = client.messages.create(**arguments, tool_choice={"type": "none"})
    assert [block.type for block in off.content] == ["text"]


def test_thinking(client: anthropic.Anthropic) -> None:
    arguments: dict[str, Any] = {"model": "demo", "max_tokens": 1500, "messages": user("<think>\nhm, 😀\n</think>\nyes")}
    answer = client.messages.create(**arguments, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (answer.content[0].thinking, answer.content[1].text) == ("hm, 😀", "yes")
    with client.messages.stream(**arguments, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
        assert [block.to_dict() for block in stream.get_final_message().content] == [block.to_dict() for block in answer.content]


ANSWERS = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"], "additionalProperties": False}


def test_what_is_forced(client: anthropic.Anthropic) -> None:
    """The worker would say something else: it is held to a schema, and to calling a tool."""
    answer = client.messages.create(
        model="demo",
        max_tokens=60,
        messages=user("nothing of the sort"),
        output_config={"format": {"type": "json_schema", "schema": ANSWERS}},
    )
    assert json.loads(answer.content[0].text)["ok"] in ("yes", "no")
    tool: Any = {"name": "tell", "input_schema": ANSWERS}
    for choice in ({"type": "any"}, {"type": "tool", "name": "tell", "disable_parallel_tool_use": True}):
        called = client.messages.create(
            model="demo", max_tokens=90, messages=user("no"), tools=[TOOL, tool][choice["type"] == "any" :], tool_choice=choice
        )  # type: ignore[arg-type]
        assert called.stop_reason == "tool_use"
        assert {(block.type, block.name) for block in called.content} == {("tool_use", "tell")}
        assert all(block.input["ok"] in ("yes", "no") for block in called.content)


@pytest.mark.parametrize("thinking", [{"type": "between_tools"}, {"type": "adaptive"}, {"type": "disabled"}], ids=str)
def test_what_current_clients_send(client: anthropic.Anthropic, thinking: Any) -> None:
    cached: Any = {"type": "ephemeral"}
    tool: Any = {
        **TOOL,
        "cache_control": cached,
        "eager_input_streaming": True,
        "defer_loading": False,
        "input_examples": [{"a": 1}],
        "strict": True,
    }
    answer = client.messages.create(
        model="demo",
        max_tokens=60,
        system=[{"type": "text", "text": "be kind", "cache_control": cached}],
        messages=user([{"type": "text", "text": "hello you", "cache_control": cached}]),
        thinking=thinking,
        output_config={"effort": "low"},
        tools=[tool],
        metadata={"user_id": "u"},
        service_tier="auto",
        extra_body={"cache_control": cached, "temperature": 0.5},
    )
    assert answer.content[0].text == "hello you"


def test_models(client: anthropic.Anthropic) -> None:
    [model] = client.models.list()
    assert (model.id, model.type, model.max_input_tokens) == ("demo", "model", 2047)
    assert client.models.retrieve("demo").display_name == "demo"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_the_clients_own(scripted: ApiServer, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=2, messages=user("x"))
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="demo", max_tokens=2, messages=user("x"), extra_body={"temperature": 9})
    assert caught.value.body["error"]["type"] == "invalid_request_error" and "temperature" in caught.value.body["error"]["message"]
    with anthropic.Anthropic(base_url=scripted.url, api_key="wrong", max_retries=0) as other, pytest.raises(anthropic.AuthenticationError):
        other.messages.create(model="demo", max_tokens=2, messages=user("x"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
    ({"messages": user([{"type": "image", "source": {}}])}, "image"),
    ({"messages": user([{"type": "text"}])}, "text"),
    ({"messages": user([{"type": "tool_result", "content": "x"}])}, "tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "tool_use"),
    ({"system": [{"type": "image"}]}, "system"),
    ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 2000}, "budget_tokens"),
    ({"thinking": {"type": "often"}}, "thinking"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
    ({"tools": [{"name": "f"}]}, "input_schema"),
    ({"tools": [TOOL], "tool_choice": {"type": "sometimes"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"output_config": {"effort": "heroic"}}, "effort"),
    ({"output_config": {"format": {"type": "xml"}}}, "format"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "output_config.format"),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "heroic"}}, "output_config.effort"),
    ({"container": "c1"}, "container"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"timeout": 0}, "timeout"),
]


@pytest.mark.parametrize("change, word", WRONG, ids=[str(change)[:60] for change, _ in WRONG])
def test_refused_in_anthropics_shape(scripted: ApiServer, change: dict[str, Any], word: str) -> None:
    status, answer = scripted.post(PATH, {"messages": user("x"), "max_tokens": 4, **change}, KEY)
    assert status == 400, answer
    assert set(answer) == {"type", "error"} and answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert word in answer["error"]["message"]


def test_other_errors_in_anthropics_shape(scripted: ApiServer) -> None:
    found = {}
    for path, method, body, headers in (
        (PATH, "POST", b"{", KEY),
        (PATH, "GET", None, KEY),
        (PATH, "POST", {"messages": user("x"), "max_tokens": 1}, {}),
        (PATH + "/batches", "GET", None, KEY),
    ):
        status, _, raw = scripted.request(method, path, body, headers)
        found[status] = json.loads(raw)["error"]["type"]
    assert found == {400: "invalid_request_error", 405: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
