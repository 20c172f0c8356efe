"""/v1/responses of several processes: any of them is asked for what another keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ipc.config import Config
from tests.api.responses import PATH, events
from tests.api.scripted import last_user_message
from tests.api.server import ApiServer, api_server, until


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
