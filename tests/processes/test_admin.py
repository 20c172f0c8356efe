"""The admin socket of a running server: who may use it, what it does, and that no network port does the same."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ConfigError
from quire import admin_client, runtime_dir
from tests.processes.server import ROOT, Server, eventually

PROMPT = {"prompt": "Once upon a time there was a " * 8, "max_tokens": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("--kv-cache-memory", "16M", "--frontends", "2", runtime=tmp_path_factory.mktemp("r")) as running:
        yield running.ready()


def path_of(server: Server) -> str:
    assert server.base is not None
    [path] = server.base.glob("quire-*/admin")
    return str(path)


def ask(server: Server, method: str, target: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    return admin_client.ask(path_of(server), method, target, body or {})


def command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """Names the socket: another test's server may run beside this one."""
    line = [sys.executable, "-m", "quire", "admin", *words, "--socket", path_of(server)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_only_the_owner_may(server: Server) -> None:
    path = Path(path_of(server))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_port_does_it(server: Server) -> None:
    """Neither our routes nor those that other engines have on their port."""
    ours = ["/admin/state", "/admin/drain", "/admin/reset_prefix_cache", "/admin/log_level"]
    theirs = ["/reset_prefix_cache", "/sleep", "/wake_up", "/collective_rpc", "/server_info", "/pause", "/resume", "/update_weights",
              "/start_profile", "/v1/load_lora_adapter", "/scale_elastic_ep", "/flush_cache", "/update_weights_from_tensor"]  # fmt: skip
    for path in ours + theirs:
        for body in (None, {}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                server.open(path, body)
            assert caught.value.code == 404, path
            caught.value.close()
    # One listener in all processes: the port that was asked for.
    listening = set()
    for pid in (server.process.pid, *server.children().values()):
        sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink() and os.path.islink(link)}
        for name in ("tcp", "tcp6", "udp"):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                if f"socket:[{words[9]}]" in sockets and (words[3] == "0A" or name == "udp"):
                    listening.add(int(words[1].split(":")[1], 16))
    assert listening == {int(server.url.rsplit(":", 1)[1])}


def test_state(server: Server) -> None:
    status, state = ask(server, "GET", "/admin/state")
    assert (status, state["status"], state["running"]) == (200, "serving", 0)
    assert {each["pid"] for each in state["processes"]} == set(server.children().values())
    assert all(each["ready"] for each in state["processes"])
    shown = command(server, "state")
    assert shown.returncode == 0 and json.loads(shown.stdout)["kv_blocks_total"] == state["kv_blocks_total"]


def test_the_prefix_cache_is_reset(server: Server) -> None:
    def cached() -> int:
        return int(server.post("/v1/completions", PROMPT)["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 0
    shown = command(server, "reset-prefix-cache")
    assert shown.returncode == 0 and json.loads(shown.stdout)["blocks_forgotten"] > 0
    assert cached() == 0 and cached() > 0
    server.with_kernels()
    # While a request runs its own blocks stay, and its text is what it would have been.
    body = {"prompt": "Count from 1 to 50.", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = server.post("/v1/completions", body)["choices"][0]["text"]
    text = ""
    for place, event in enumerate(server.events("/v1/completions", body)):
        text += event["choices"][0]["text"]
        if place % 10 == 0:
            assert ask(server, "POST", "/admin/reset_prefix_cache")[0] == 200
    assert text == alone


def test_log_level(server: Server) -> None:
    assert command(server, "log-level", "debug").returncode == 0
    assert ask(server, "GET", "/admin/state")[1]["log_level"] == "debug"
    assert ask(server, "POST", "/admin/log_level", {"level": "info"})[0] == 200
    for body in ({}, {"level": "loud"}, {"level": 5}):
        status, answer = ask(server, "POST", "/admin/log_level", body)
        assert status == 400 and "level must be one of" in answer["error"]


@pytest.mark.parametrize(
    "raw, status",
    [
        (b"GET /admin/nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /admin/drain HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /admin/log_level HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /admin/log_level HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 400),
        (b"POST /admin/log_level HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", 400),
        (b"POST /admin/log_level HTTP/1.1\r\nContent-Length: 1\r\n\r\n{", 400),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_request(server: Server, raw: bytes, status: int) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path_of(server))
        connection.sendall(raw)
        assert connection.recv(4096).startswith(b"HTTP/1.1 %d" % status)


def test_which_server_is_meant(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_dir, "_bases", lambda: [str(server.base)])
    assert admin_client.find() == path_of(server)
    monkeypatch.setattr(runtime_dir, "_bases", lambda: [str(tmp_path)])
    with pytest.raises(ConfigError, match="no running server of yours"):
        admin_client.find()
    nobody = subprocess.run(
        [sys.executable, "-m", "quire", "admin", "state", "--socket", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True
    )
    assert nobody.returncode == 1 and "does not answer" in nobody.stderr
    bad = command(server, "log-level", "loud")
    assert bad.returncode == 2 and "loud" in bad.stderr


def test_draining(server: Server) -> None:
    """The last: the server ends."""
    assert command(server, "drain").returncode == 0
    assert server.wait() == 0
    eventually(lambda: server.base is not None and not list(server.base.glob("quire-*")))
