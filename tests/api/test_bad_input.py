"""What no well-meaning client sends: each gets an OpenAI error object, nothing of our inside, and the server lives on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.api.server import ApiServer, http, until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
INSIDE = re.compile(r"Traceback|0x[0-9a-f]{6}|/(?:home|usr|tmp|lib|root|work|opt)/|\.py\b|msgspec|aiohttp")


def check(answer: tuple[int, dict[str, str], bytes], status: int) -> dict[str, Any]:
    got, headers, raw = answer
    assert got == status, raw
    assert headers["content-type"].startswith("application/json")
    error = json.loads(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    assert not INSIDE.search(raw.decode()), raw
    return dict(error)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"prompt": "x"} trailing',
        b'\xef\xbb\xbf{"prompt": "x"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "metadata": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b'{"prompt": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b"{}",
    ],
    ids=lambda raw: repr(raw[:30]),
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_malformed_bodies(server: ApiServer, raw: bytes, path: str) -> None:
    check(server.request("POST", path, raw), 400)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [[1], [2.5]]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [4096]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": [2**32 + 5]}, "prompt"),
    ({"prompt": [2**63]}, "prompt"),
    ({"prompt": ["x"] * 9}, "prompt"),
    ({"prompt": [1] * 2048}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 2**63}, "n"),
    ({"n": 33}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "1"}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"min_tokens": 20}, "min_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 1025]}, "stop"),
    ({"stop_token_ids": [4096]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"4096": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [9999]}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": ["x" * 10_000]}, "bad_words"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 0}, "best_of"),
    ({"use_beam_search": "yes"}, "use_beam_search"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize("change, param", WRONG, ids=[str(change)[:50] for change, _ in WRONG])
def test_values_out_of_range(server: ApiServer, change: dict[str, Any], param: str) -> None:
    error = check(server.request("POST", COMPLETIONS, {"prompt": "x", "max_tokens": 4, **change}), 400)
    assert error["param"] == param, error


def test_a_prompt_too_long_is_told_its_length(server: ApiServer) -> None:
    error = check(server.request("POST", COMPLETIONS, {"prompt": [1] * 2048}), 400)
    assert "2048" in error["message"] and "2047" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_unknown_model_route_and_method(server: ApiServer) -> None:
    assert check(server.request("POST", COMPLETIONS, {"model": "gpt-9", "prompt": "x"}), 404)["code"] == "model_not_found"
    assert check(server.request("GET", "/v1/models/gpt-9"), 404)["code"] == "model_not_found"
    for path in ("//", "/v1", "/v2/completions", "/v1/completions/", "/%2e%2e/etc/passwd", "/v1/models/../../x", "/v1//models"):
        check(server.request("GET", path), 404)
    status, headers, raw = server.request("DELETE", COMPLETIONS)
    check((status, headers, raw), 405)
    assert "POST" in headers["allow"]


def test_content_types_and_encodings(server: ApiServer) -> None:
    body = b'{"prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        check(server.request("POST", COMPLETIONS, body, {"Content-Type": kind}), 415)
    for coding in ("gzip", "br", "deflate", "identity, gzip"):
        check(server.request("POST", COMPLETIONS, body, {"Content-Encoding": coding}), 415)
    assert server.request("POST", COMPLETIONS, body, {"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_a_body_too_large(server: ApiServer) -> None:
    check(server.request("POST", COMPLETIONS, b'{"prompt": "' + b"x" * 200_001 + b'"}'), 413)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    # announced, never sent
    check(server.raw(head + b"Content-Length: 99999999999\r\n\r\n"), 413)
    # chunked, so its size shows only while it comes
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    check(server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 8 + b"0\r\n\r\n"), 413)


def test_expectations(server: ApiServer) -> None:
    assert server.request("POST", COMPLETIONS, {"prompt": "x"}, {"Expect": "100-continue"})[0] == 200
    check(server.request("POST", COMPLETIONS, {"prompt": "x"}, {"Expect": "miracles"}), 417)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % place for place in range(500)) + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_bad_http(server: ApiServer, raw: bytes) -> None:
    status, headers, answer = server.raw(raw)
    assert 400 <= status < 500
    if headers.get("content-type", "").startswith("application/json"):
        check((status, headers, answer), status)


def test_upgrades_are_not_taken(server: ApiServer) -> None:
    headers = {"Connection": "Upgrade, close", "Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 24, "Sec-WebSocket-Version": "13"}
    assert server.request("GET", "/health", None, headers)[0] == 200


def test_request_ids(server: ApiServer) -> None:
    assert server.request("GET", "/health", None, {"X-Request-Id": "abc-1"})[1]["x-request-id"] == "abc-1"
    for bad in ("a" * 129, "with space", ""):
        assert server.request("GET", "/health", None, {"X-Request-Id": bad})[1]["x-request-id"] not in (bad, "")
    assert server.request("POST", COMPLETIONS, b"{", {"X-Request-Id": "abc-2"})[1]["x-request-id"] == "abc-2"


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080", "vscode-webview://1b2c", "tauri://localhost"]
)
def test_pages_of_this_machine_may_ask(server: ApiServer, origin: str) -> None:
    status, headers, _ = server.request("OPTIONS", CHAT, None, {"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert status == 204
    assert headers["access-control-allow-origin"] == origin and headers["vary"] == "Origin"
    assert "POST" in headers["access-control-allow-methods"]
    for body in ({"messages": [{"role": "user", "content": "one"}], "max_tokens": 1, "stream": stream} for stream in (False, True)):
        status, headers, _ = server.request("POST", CHAT, json.dumps(body).encode(), {"Origin": origin})
        assert (status, headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost.evil.example", "null", "http://", "https://127.0.0.1.evil.example:1"]
)
def test_pages_of_the_web_may_not(server: ApiServer, origin: str) -> None:
    """Also not those requests that browsers send without asking first: a form's, which Ollama's paths would take for JSON."""
    body = json.dumps({"model": "demo", "prompt": "x", "stream": False}).encode()
    for method, path in (("OPTIONS", CHAT), ("GET", "/v1/models"), ("POST", "/api/generate"), ("GET", "/health")):
        status, headers, raw = server.request(
            method, path, body if method == "POST" else None, {"Origin": origin, "Content-Type": "text/plain"}
        )
        assert status == 403 and "access-control-allow-origin" not in headers
        assert "origin" in raw.decode()


def test_many_requests_in_one_write(server: ApiServer) -> None:
    """Pipelined: answered in order on one connection."""
    one = http("GET", "/version", None, {"Connection": "keep-alive"})
    with server.connect() as connection:
        connection.sendall(one * 20 + http("GET", "/version"))
        data = b""
        while part := connection.recv(65536):
            data += part
    assert data.count(b"HTTP/1.1 200 OK") == 21


def test_the_server_still_serves(server: ApiServer) -> None:
    until(lambda: server.get("/health")[1]["running"] == 0)
    assert server.get("/health")[0] == 200
    assert server.post(COMPLETIONS, {"prompt": "one", "max_tokens": 20})[1]["choices"][0]["text"] == "one"
    assert all(process.poll() is None for process in server.processes)
