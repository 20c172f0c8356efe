"""The terminal chat over HTTP, against a small server of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from typing import Any

import pytest

from ipc.errors import ConfigError, RequestFailedError
from quire import chat

asked: list[tuple[str, str | None, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append((self.path, self.headers["Authorization"], body))
        if body.get("max_tokens") == 1:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "too short"}}')
            return
        self.send_response(200)
        self.end_headers()
        said = body["messages"][-1]["content"].upper()
        for piece in said.split():
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": piece + " "}}]}).encode() + b"\n\n")
        if "FAIL" in said:
            self.wfile.write(b'data: {"error": {"message": "it broke"}}\n\n')
        self.wfile.write(b": a comment\n\ndata: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    asked.clear()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_conversation(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("one two\n\nthree\n/new\nfour\n/exit\nnever\n"))
    assert chat.talk(chat.HttpBackend(url + "/v1/", "key", "m"), chat.Settings(system="be kind", temperature=0.5)) == 0
    assert capsys.readouterr().out == "ONE TWO \nTHREE \nFOUR \n"
    assert [path for path, _, _ in asked] == ["/v1/chat/completions"] * 3
    assert asked[0][1] == "Bearer key"
    assert (asked[0][2]["model"], asked[0][2]["temperature"], "max_tokens" in asked[0][2]) == ("m", 0.5, False)
    roles = [[message["role"] for message in body["messages"]] for _, _, body in asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert asked[1][2]["messages"][2]["content"] == "ONE TWO "


def test_errors_of_the_server_are_shown(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("x\n"))
    assert chat.talk(chat.HttpBackend(url, "", ""), chat.Settings(max_tokens=1)) == 1
    assert "answered 400: too short" in capsys.readouterr().err
    with pytest.raises(RequestFailedError, match="it broke"):
        list(chat.HttpBackend(url, "", "").reply([{"role": "user", "content": "fail"}], chat.Settings()))


def test_nobody_there() -> None:
    with pytest.raises(RequestFailedError, match=r"cannot talk to http://127.0.0.1:1"):
        list(chat.HttpBackend("http://127.0.0.1:1", "", "").reply([], chat.Settings()))
    with pytest.raises(ConfigError, match="--url"):
        chat.HttpBackend("ftp://x", "", "")
