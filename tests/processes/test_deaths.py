"""Processes are killed under a running stream; what the client reads must not change."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.server import Server, eventually

# The prompt opens a thought whose budget ends long after somebody has died.
BODY: dict[str, Any] = {
    "prompt": "<think>Once upon a time",
    "max_tokens": 700,
    "temperature": 0,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "thinking_token_budget": 400,
}


@pytest.fixture(scope="module")
def server(tiny_llama: str) -> Iterator[Server]:
    with Server(tiny_llama) as running:
        yield running.ready()
        running.terminate()
        assert running.wait() == 0


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> str:
    choice = server.post("/v1/completions", {**BODY, "return_token_ids": True})["choices"][0]
    end = server.post("/tokenize", {"prompt": "</think>", "add_special_tokens": False})["tokens"]
    assert choice["token_ids"].index(*end) == 400
    text: str = choice["text"]
    return text


def whole(server: Server) -> dict[str, int]:
    """The children, once all three are there and the server says it is healthy."""
    eventually(lambda: len(server.children()) == 3)
    eventually(lambda: _healthy(server))
    return server.children()


def _healthy(server: Server) -> bool:
    try:
        with server.open("/health", seconds=30) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["quire-worke-0", "quire-sched"])
def test_a_stream_survives_a_death_and_does_not_show_it(victim: str, server: Server, undisturbed: str) -> None:
    before = whole(server)
    text, killed = "", 0.0
    longest = 0.0
    last = time.monotonic()
    for number, event in enumerate(server.events("/v1/completions", BODY)):
        for choice in event["choices"]:
            text += choice["text"]
        if number == 20:
            os.kill(before[victim], 9)
            killed = last = time.monotonic()
        if killed:
            longest = max(longest, time.monotonic() - last)
            last = time.monotonic()
    assert killed, "the stream was over before anybody could die"
    assert text == undisturbed
    after = whole(server)
    assert after[victim] != before[victim]
    assert after["quire-front-0"] == before["quire-front-0"]
    print(f"{victim}: the stream paused for {longest:.2f} s")


def test_a_request_without_streaming_survives_as_well(server: Server, undisturbed: str) -> None:
    import threading

    before = whole(server)
    timer = threading.Timer(0.2, os.kill, (before["quire-worke-0"], 9))
    timer.start()
    assert server.post("/v1/completions", BODY)["choices"][0]["text"] == undisturbed
    timer.join()


def test_a_dead_frontend_is_replaced_and_new_connections_work(server: Server, undisturbed: str) -> None:
    before = whole(server)
    os.kill(before["quire-front-0"], 9)
    # Not refused, not even in between: the listening socket is the supervisor's, and waiting connections stay in its queue.
    assert server.post("/v1/completions", BODY)["choices"][0]["text"] == undisturbed
    after = whole(server)
    assert after["quire-front-0"] != before["quire-front-0"]
    assert after["quire-sched"] == before["quire-sched"]
