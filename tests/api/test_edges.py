"""Keys from a file, Host names, deadlines and signs of life."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontend.auth import ApiKeys, HostNames, Origins, read_key_file
from frontend.generation import Pulse
from ipc.arena import Stat
from ipc.config import Config, SchedulerConfig, ServerConfig
from ipc.errors import ConfigError
from tests.api.server import ApiServer, api_server, http, until

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER = [{"role": "user", "content": "word " * 10}]
LONG: dict[str, Any] = {"messages": USER, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One request runs at a time, 10 ms a step; signs of life after 100 ms; keys from a file and a flag; one more name."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# ours\nsk-file\n\n  sk-other  \n")
    server = ServerConfig(stream_keepalive=0.1, api_key=["sk-flag"], api_key_file=str(file), allowed_host=["Chat.Example"])
    with api_server(Config(server=server, scheduler=SchedulerConfig(max_num_seqs=1)), delay=0.01) as running:
        yield running


KEY = {"Authorization": "Bearer sk-file"}


def test_keys(slow: ApiServer) -> None:
    for key in ("sk-file", "sk-other", "sk-flag"):
        assert slow.get("/version", {"Authorization": f"Bearer {key}"})[0] == 200
        assert slow.get("/version", {"x-api-key": key})[0] == 200
        # Clients that send both mean either.
        assert slow.get("/version", {"x-api-key": key, "Authorization": "Bearer none"})[0] == 200
    for headers in ({}, {"x-api-key": "# ours"}, {"x-api-key": ""}, {"Authorization": "Bearer "}, {"Authorization": "Basic sk-file"}):
        assert slow.get("/version", headers)[0] == 401


def test_a_key_file_that_would_leave_the_server_open(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n# nothing\n")
    for file in (empty, tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="--api-key-file"):
            read_key_file(str(file))
    assert ApiKeys([]).allow("/v1/models", {}) is True


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST", "chat.example:80"])
def test_hosts_that_are_served(slow: ApiServer, host: str) -> None:
    assert slow.get("/version", {**KEY, "Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "localhost:x"]
)
def test_hosts_that_are_not(slow: ApiServer, host: str) -> None:
    for method, path in (("GET", "/version"), ("OPTIONS", "/version"), ("GET", "/health")):
        status, _, raw = slow.request(method, path, None, {**KEY, "Host": host})
        assert (status, json.loads(raw)["error"]["code"]) == (403, "host_not_allowed")


def test_which_addresses_look_at_the_host() -> None:
    for bound in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert HostNames(bound, []).allow("evil.example")
    for bound in ("127.0.0.1", "::1", "localhost", "127.0.0.53"):
        assert not HostNames(bound, []).allow("evil.example")
        assert HostNames(bound, ["*"]).allow("evil.example")
        assert HostNames(bound, []).allow("")
    assert HostNames("127.0.0.53", []).allow("127.0.0.53:80")


def test_with_a_key_any_page_may_ask(slow: ApiServer) -> None:
    status, headers, _ = slow.request("GET", "/version", None, {**KEY, "Origin": "https://app.example"})
    assert (status, headers["access-control-allow-origin"]) == (200, "*")
    assert slow.request("GET", "/version", None, {"Origin": "https://app.example"})[0] == 401


def test_which_origins_are_let_in() -> None:
    loopback, public = HostNames("127.0.0.1", ["chat.example"]), HostNames("0.0.0.0", [])
    assert Origins(public, [], keys=False).any and Origins(loopback, [], keys=True).any and Origins(loopback, ["*"], keys=False).any
    assert Origins(HostNames("127.0.0.1", ["*"]), [], keys=False).any
    some = Origins(loopback, ["https://app.example/"], keys=True)
    for origin, allowed in (
        ("", True),
        ("https://app.example", True),
        ("https://App.example", True),
        ("http://app.example", False),
        ("https://app.example:8443", False),
        ("https://chat.example", True),
        ("http://localhost:5173", True),
        ("https://other.example", False),
        ("null", False),
        ("app://obsidian.md", True),
    ):
        assert some.allow(origin) is allowed, origin
    named = Origins(public, ["https://app.example"], keys=False)
    assert named.allow("https://app.example") and not named.allow("https://other.example") and not named.allow("http://localhost")


def test_a_deadline(slow: ApiServer) -> None:
    begun = time.monotonic()
    status, headers, raw = slow.request("POST", CHAT, {**LONG, "timeout": 0.3}, KEY)
    assert time.monotonic() - begun > 0.25
    error = json.loads(raw)["error"]
    assert (status, error["code"], error["type"]) == (504, "deadline_exceeded", "timeout_error")
    assert headers["x-should-retry"] == "false"
    slow.at_rest()
    # In a stream what there is comes first, then the error, in each API's way.
    raw = slow.request("POST", CHAT, {**LONG, "timeout": 2, "stream": True}, KEY)[2]
    assert raw.count(b'"content":"') > 2 and b'"code":"deadline_exceeded"' in raw and b'"finish_reason":"' not in raw
    raw = slow.request("POST", MESSAGES, {"messages": USER * 20, "max_tokens": 900, "timeout": 2, "stream": True}, KEY)[2]
    assert raw.count(b"text_delta") > 2 and b'event: error\ndata: {"type":"error","error":{"type":"timeout_error"' in raw
    raw = slow.request("POST", "/api/generate", {"model": "demo", "prompt": "word " * 200, "timeout": 0.3}, KEY)[2]
    assert list(json.loads(raw.decode().split("\n")[-2])) == ["error"]
    raw = slow.request("POST", "/v1/responses", {"input": "word " * 200, "timeout": 0.3, "stream": True}, KEY)[2]
    assert b"event: response.failed" in raw
    slow.at_rest()


def test_a_deadline_passes_unnoticed_when_it_is_kept(slow: ApiServer) -> None:
    assert slow.request("POST", CHAT, {"messages": USER, "max_tokens": 3, "timeout": 100}, KEY)[0] == 200


@pytest.mark.parametrize("path, sign", [(CHAT, b": still here\n\n"), (MESSAGES, b'event: ping\ndata: {"type":"ping"}\n\n')])
def test_a_stream_that_waits_gets_signs_of_life(slow: ApiServer, path: str, sign: bytes) -> None:
    slow.at_rest()
    with slow.connect() as busy:
        busy.sendall(http("POST", CHAT, {**LONG, "stream": True}, KEY))
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
        with slow.connect() as waiting:
            waiting.sendall(http("POST", path, {"messages": USER, "max_tokens": 3, "stream": True}, KEY))
            data = b""
            while data.count(sign) < 3:
                data += waiting.recv(4096)
            assert data.startswith(b"HTTP/1.1 200") and slow.stat(Stat.NUM_WAITING) == 1
            busy.close()
            while not data.endswith(b"0\r\n\r\n"):
                data += waiting.recv(4096)
            assert data.count(b'"word') + data.count(b'word"') + data.count(b"user") > 0


def test_a_stream_that_flows_gets_none() -> None:
    """The beats are the test's own: a busy machine may let a real stream wait."""

    async def scene() -> None:
        said: list[bytes] = []
        response: Any = SimpleNamespace(direct=True, frame=lambda _stream, data: said.append(data))
        stream: Any = SimpleNamespace(ids=[])
        pulse = Pulse(response, [stream], 1000.0, b"sign")
        for token in range(5):
            stream.ids.append(token)
            pulse._beat()
        assert not said
        pulse._beat()
        assert said == [b"sign"]

    asyncio.run(scene())
