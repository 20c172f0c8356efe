"""/v1/responses through OpenAI's client and raw: answers, events in order, what is stored, and what runs in the background."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ipc.arena import Stat
from ipc.config import Config, ServerConfig
from ipc.messages import Drain, Drained
from tests.api.scripted import last_user_message
from tests.api.server import ApiServer, api_server, until

PATH = "/v1/responses"
KEY = {"Authorization": "Bearer sk-one"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17}}\n</tool_call>'
TOOL: Any = {"type": "function", "name": "add", "strict": False, "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def client(scripted: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="sk-one", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def slow() -> Iterator[ApiServer]:
    """A step takes 10 ms; a silent stream gets a sign of life after 50 ms."""
    config = Config(server=ServerConfig(stream_keepalive=0.05))
    with api_server(config, next_token=last_user_message(), delay=0.01) as running:
        yield running


def events(raw: bytes) -> list[dict[str, Any]]:
    """Each event's data; its name must be its type."""
    found = []
    for part in raw.decode().split("\n\n")[:-1]:
        if part.startswith(":"):
            continue
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found


def test_a_stream_that_is_neither_true_nor_false(scripted: ApiServer) -> None:
    identity = scripted.post("/v1/responses", {"input": "hi"}, {"x-api-key": "sk-one"})[1]["id"]
    for value, status in (("null", 400), ("", 400), ("2", 400), ("0", 200), ("False", 200)):
        assert scripted.get(f"/v1/responses/{identity}?stream={value}", {"x-api-key": "sk-one"})[0] == status


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


def test_what_is_stored(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="one")
    assert client.responses.retrieve(first.id).output_text == "one"
    second = client.responses.create(model="demo", input="two", previous_response_id=first.id)
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    listed = client.responses.input_items.list(second.id, order="asc")
    assert [item.to_dict()["content"][0]["text"] for item in listed] == ["one", "one", "two"]  # type: ignore[index]
    assert len(client.responses.input_items.list(second.id, limit=1).data) == 1
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert client.responses.create(model="demo", input="three", previous_response_id=second.id).output_text == "three"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input="three", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    unstored = client.responses.create(model="demo", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_the_least_recently_used_is_forgotten(client: openai.OpenAI) -> None:
    """Four are kept."""
    made = [client.responses.create(model="demo", input=f"n {place}").id for place in range(4)]
    client.responses.retrieve(made[0])
    made.append(client.responses.create(model="demo", input="n 4").id)
    assert client.responses.retrieve(made[0]).output_text == "n 0"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made[1])


def test_in_the_background(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="demo", input="one two", background=True)
    assert answer.status in ("queued", "in_progress")
    until(lambda: client.responses.retrieve(answer.id).status == "completed")
    assert client.responses.retrieve(answer.id).output_text == "one two"
    assert client.responses.cancel(answer.id).status == "completed"


def test_following_again(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="demo", input="one two three", background=True, stream=True)
    found = list(stream)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert found[1].type == "response.queued" and found[-1].type == "response.completed"
    identity = found[0].response.id  # type: ignore[union-attr]
    again = list(client.responses.retrieve(identity, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in found]
    rest = list(client.responses.retrieve(identity, stream=True, starting_after=4))
    assert [event.to_dict() for event in rest] == [event.to_dict() for event in found[5:]]


LONG = {"input": "word " * 20, "ignore_eos": True, "max_output_tokens": 150}


def test_leaving_and_coming_back(slow: ApiServer) -> None:
    """Two who join in the middle get all of it, each from where it wants; the one who left did not end it."""
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="-", max_retries=0) as client:
        with client.responses.create(
            input=LONG["input"], background=True, stream=True, max_output_tokens=40, extra_body={"ignore_eos": True}
        ) as s:
            first = [next(s) for _ in range(8)]
        identity = first[0].response.id  # type: ignore[union-attr]
        assert client.responses.retrieve(identity).status == "in_progress"
        whole = list(client.responses.retrieve(identity, stream=True))
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert [event.to_dict() for event in whole[:8]] == [event.to_dict() for event in first]
    assert whole[-1].type == "response.incomplete"


def test_cancelling(slow: ApiServer) -> None:
    status, made = slow.post(PATH, {**LONG, "background": True})
    assert status == 200
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
    assert slow.post(f"{PATH}/{made['id']}", {})[0] == 405
    status, cancelled = slow.post(f"{PATH}/{made['id']}/cancel", {})
    assert (status, cancelled["status"]) == (200, "cancelled")
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 0, 2)
    status, made = slow.post(PATH, {**LONG, "background": True})
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
    assert json.loads(slow.request("DELETE", f"{PATH}/{made['id']}")[2])["deleted"] is True
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 0, 2)
    assert slow.get(f"{PATH}/{made['id']}")[0] == 404
    plain = slow.post(PATH, {"input": "x"})[1]
    assert slow.post(f"{PATH}/{plain['id']}/cancel", {})[0] == 400


def test_a_shutdown_waits_for_what_runs_in_the_background() -> None:
    with api_server(Config(), next_token=last_user_message(), delay=0.01) as server:
        made = server.post(PATH, {**LONG, "max_output_tokens": 60, "background": True})[1]
        until(lambda: server.stat(Stat.NUM_RUNNING) == 1)
        server.tell(Drain(time.monotonic_ns() + 20 * 10**9))
        until(lambda: server.get("/health")[1]["status"] == "draining")
        assert server.stat(Stat.NUM_RUNNING) == 1
        assert not any(isinstance(message, Drained) for _, message in server.engine.supervisor.heard)
        until(lambda: server.get(f"{PATH}/{made['id']}")[1]["status"] != "in_progress")
        found = server.get(f"{PATH}/{made['id']}")[1]
        assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 60)
        server.engine.supervisor.wait_for(Drained, server.specs[0].identity)


def test_leaving_a_plain_stream_ends_it(slow: ApiServer) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="-", max_retries=0) as client:
        stream = client.responses.create(input="word " * 20, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
        stream.close()
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 0, 2)


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


def test_reading_what_cannot_be_read(scripted: ApiServer) -> None:
    made = scripted.post(PATH, {"input": "x"}, KEY)[1]["id"]
    for query, status in (
        ("?stream=true", 400),
        ("?stream=true&starting_after=x", 400),
        ("?starting_after=1000000000", 400),
        ("/input_items?limit=0", 400),
        ("/input_items?order=up", 400),
    ):
        assert scripted.get(f"{PATH}/{made}{query}", KEY)[0] == status, query
    assert scripted.get(f"{PATH}/resp_none", KEY)[0] == 404
    assert scripted.get(f"{PATH}/{made}")[0] == 401


@pytest.fixture(scope="module")
def several() -> Iterator[ApiServer]:
    """Three processes on one port, of which any may get a request; a step takes 5 ms."""
    with api_server(Config(), frontends=3, next_token=last_user_message(), delay=0.005) as running:
        yield running


def by_process(server: ApiServer, body: dict[str, Any], wanted: int = 3) -> dict[str, dict[str, Any]]:
    """Responses made by so many different processes, by the process's number."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(200):
        status, made = server.post(PATH, body)
        assert status == 200, made
        found[made["id"][5:7]] = made
        if len(found) == wanted:
            return found
    raise AssertionError("the kernel gave all connections to the same processes")


def test_any_process_finds_what_another_keeps(several: ApiServer) -> None:
    made = by_process(several, {"input": "one two"})
    assert set(made) == {"00", "01", "02"}
    for _ in range(6):  # connections go to any of the three
        for each in made.values():
            status, headers, raw = several.request("GET", f"{PATH}/{each['id']}", None, {"X-Request-Id": "mine"})
            assert (status, json.loads(raw)) == (200, each)
            assert headers["x-request-id"] == "mine" and headers["content-type"].startswith("application/json")
            assert len(several.get(f"{PATH}/{each['id']}/input_items")[1]["data"]) == 1
    for each in made.values():
        assert several.request("DELETE", f"{PATH}/{each['id']}")[0] == 200
    for each in made.values():
        status, answer = several.get(f"{PATH}/{each['id']}")
        assert (status, answer["error"]["param"]) == (404, "response_id")
    for strange in ("resp_none", "resp_ff" + "0" * 30, "resp_", "resp_0", "x"):
        assert several.get(f"{PATH}/{strange}")[0] == 404, strange


def test_a_conversation_goes_on_wherever_it_is_kept(several: ApiServer) -> None:
    for first in by_process(several, {"input": "one two three"}).values():
        for _ in range(4):
            status, second = several.post(PATH, {"input": "four", "previous_response_id": first["id"]})
            assert status == 200 and second["previous_response_id"] == first["id"]
            assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 4
            raw = several.request("POST", PATH, {"input": "five", "previous_response_id": second["id"], "stream": True})[2]
            assert events(raw)[-1]["response"]["status"] == "completed"
            status, answer = several.post(PATH, {"input": "x", "previous_response_id": first["id"][:-1] + "z"})
            assert (status, answer["error"]["code"]) == (400, "previous_response_not_found")


def test_events_of_the_background_are_followed_from_anywhere(several: ApiServer) -> None:
    text = "word " * 60
    for made in by_process(several, {"input": text, "background": True}).values():
        assert made["status"] in ("queued", "in_progress")
        where = f"{PATH}/{made['id']}"
        until(lambda where=where: several.get(where)[1]["status"] == "completed")  # type: ignore[misc]
    raw = several.request("POST", PATH, {"input": text, "background": True, "stream": True})[2]
    whole = events(raw)
    identity = whole[0]["response"]["id"]
    for _ in range(6):
        assert events(several.request("GET", f"{PATH}/{identity}?stream=true&starting_after=3")[2]) == whole[4:]
    # A client of another process that leaves ends only its own following.
    begun = several.post(PATH, {"input": text, "background": True})[1]
    for _ in range(4):
        status, answer = several.post(f"{PATH}/{begun['id']}/cancel", {})
        assert status == 200 and answer["status"] in ("cancelled", "completed")


def test_what_a_dead_process_kept_is_lost_and_said_to_be() -> None:
    with api_server(Config(), frontends=2, next_token=last_user_message()) as server:
        made = by_process(server, {"input": "x"}, wanted=2)
        server.processes[1].kill()
        server.processes[1].wait()
        status, headers, raw = server.request("GET", f"{PATH}/{made['01']['id']}")
        assert status == 503 and headers["retry-after"] == "5" and b"is lost" in raw
        assert server.get(f"{PATH}/{made['00']['id']}")[0] == 200
