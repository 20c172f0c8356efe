"""/v1/responses: what is stored, what runs in the background, and who leaves and comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import openai
import pytest

from ipc.arena import Stat
from ipc.config import Config, ServerConfig
from ipc.messages import Drain, Drained
from tests.api.responses import KEY, PATH
from tests.api.scripted import last_user_message
from tests.api.server import ApiServer, api_server, until

LONG = {"input": "word " * 20, "ignore_eos": True, "max_output_tokens": 1500}


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


def test_a_stream_that_is_neither_true_nor_false(scripted: ApiServer) -> None:
    identity = scripted.post("/v1/responses", {"input": "hi"}, {"x-api-key": "sk-one"})[1]["id"]
    for value, status in (("null", 400), ("", 400), ("2", 400), ("0", 200), ("False", 200)):
        assert scripted.get(f"/v1/responses/{identity}?stream={value}", {"x-api-key": "sk-one"})[0] == status


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


def test_leaving_and_coming_back(slow: ApiServer) -> None:
    """Two who join in the middle get all of it, each from where it wants; the one who left did not end it."""
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="-", max_retries=0) as client:
        with client.responses.create(
            input=LONG["input"], background=True, stream=True, max_output_tokens=40, extra_body={"ignore_eos": True}
        ) as s:
            first = [next(s) for _ in range(8)]
        identity = first[0].response.id  # type: ignore[union-attr]
        assert client.responses.retrieve(identity).status in ("in_progress", "incomplete")  # its end may come before, on a busy machine
        whole = list(client.responses.retrieve(identity, stream=True))
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert [event.to_dict() for event in whole[:8]] == [event.to_dict() for event in first]
    assert whole[-1].type == "response.incomplete"


def test_cancelling(slow: ApiServer) -> None:
    slow.at_rest()
    before = slow.stat(Stat.GENERATION_TOKENS)
    status, made = slow.post(PATH, {**LONG, "background": True})
    assert status == 200
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
    assert slow.post(f"{PATH}/{made['id']}", {})[0] == 405
    status, cancelled = slow.post(f"{PATH}/{made['id']}/cancel", {})
    assert (status, cancelled["status"]) == (200, "cancelled")
    slow.at_rest()
    status, made = slow.post(PATH, {**LONG, "background": True})
    until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
    assert json.loads(slow.request("DELETE", f"{PATH}/{made['id']}")[2])["deleted"] is True
    slow.at_rest()
    assert slow.stat(Stat.GENERATION_TOKENS) < before + 1500, "one of them went on to its end"
    assert slow.get(f"{PATH}/{made['id']}")[0] == 404
    plain = slow.post(PATH, {"input": "x"})[1]
    assert slow.post(f"{PATH}/{plain['id']}/cancel", {})[0] == 400


def test_a_shutdown_waits_for_what_runs_in_the_background() -> None:
    with api_server(Config(), next_token=last_user_message(), delay=0.01) as server:
        made = server.post(PATH, {**LONG, "max_output_tokens": 60, "background": True})[1]
        until(lambda: server.stat(Stat.NUM_RUNNING) == 1)
        server.tell(Drain(time.monotonic_ns() + 100 * 10**9))
        until(lambda: server.get("/health")[1]["status"] == "draining")
        drained = any(isinstance(message, Drained) for _, message in server.engine.supervisor.heard)
        assert not drained or server.stat(Stat.NUM_RUNNING) == 0
        until(lambda: server.get(f"{PATH}/{made['id']}")[1]["status"] != "in_progress")
        found = server.get(f"{PATH}/{made['id']}")[1]
        assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 60)
        server.engine.supervisor.wait_for(Drained, server.specs[0].identity)


def test_leaving_a_plain_stream_ends_it(slow: ApiServer) -> None:
    slow.at_rest()
    before = slow.stat(Stat.GENERATION_TOKENS)
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="-", max_retries=0) as client:
        stream = client.responses.create(input="word " * 20, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
        stream.close()
    slow.at_rest()
    assert slow.stat(Stat.GENERATION_TOKENS) < before + 1500


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
