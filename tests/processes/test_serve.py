"""`quire serve` as a user meets it: it starts, says how to try it, answers, idles, drains and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.child_process import cpu_seconds
from tests import oracle
from tests.processes.server import Server, alive, children_of, eventually


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    with Server("--frontends", "2", runtime=base) as running:
        yield running.ready()


def test_the_printed_curl_line_answers(server: Server) -> None:
    line = next(line for line in server.lines if line.startswith("curl "))
    words = shlex.split(line)
    url, body = words[1], words[words.index("-d") + 1]
    assert url == server.url + "/v1/chat/completions"
    if os.access("/usr/bin/curl", os.X_OK):
        answer = subprocess.run([*words, "-s", "-m", "60"], capture_output=True, text=True, check=True).stdout
        assert '"chat.completion"' in answer
    answer = server.post("/v1/chat/completions", json.loads(body))
    assert answer["choices"][0]["message"]["content"]


def close(logprobs: list[float | None]) -> list[Any]:
    """As far apart as bfloat16 may be: on some CPUs the bits of a row depend on what else is in its step."""
    return [None if value is None else pytest.approx(value, rel=0.05, abs=0.25) for value in logprobs]


def test_loglikelihoods_as_lm_eval_reads_them(server: Server) -> None:
    """It sends lists of ids with echo and one token more, and asks whether a token is greedy by comparing floats."""
    server.with_kernels()
    # The token that follows each is much likelier than any other, so that it is the same whatever else is in a step.
    prompts = [[5, 900, 7, 4000, 12, 3641], list(range(300, 341))]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = server.post("/v1/completions", body)
    without = server.post("/v1/completions", {**body, "max_tokens": 0})
    greedy = 0
    for ids, choice, alone in zip(prompts, answer["choices"], without["choices"]):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(ids) + 1 and logprobs["token_logprobs"][0] is None
        assert alone["logprobs"]["token_logprobs"] == close(logprobs["token_logprobs"][:-1])
        for value, token, top in zip(logprobs["token_logprobs"][1:], logprobs["tokens"][1:], logprobs["top_logprobs"][1:]):
            assert top[token] == value <= max(top.values())
            greedy += value == max(top.values())
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values()), "the one that was made is greedy"
    assert 2 <= greedy < 40
    # Alone in its step a prompt has the same bits each time.
    one, none = (
        server.post("/v1/completions", {**body, "prompt": prompts[1], "max_tokens": count})["choices"][0]["logprobs"]["token_logprobs"]
        for count in (1, 0)
    )
    assert none == one[:-1]
    assert without["usage"]["completion_tokens"] == 0
    parts = [event["choices"][0] for event in server.events("/v1/completions", body)]
    for index, choice in enumerate(answer["choices"]):
        own = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in own) == choice["text"]
        shown: dict[str, list[Any]] = {
            name: [value for part in own if part["logprobs"] for value in part["logprobs"][name]] for name in choice["logprobs"]
        }
        assert (shown["tokens"], shown["text_offset"]) == (choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
        assert shown["token_logprobs"] == close(choice["logprobs"]["token_logprobs"])
    expected = oracle.loglikelihood(str(oracle.DEMO_MODEL), prompts[1])
    assert answer["choices"][1]["logprobs"]["token_logprobs"][1:-1] == close(expected)


def test_it_starts_with_bounded_work(server: Server, record_property: Callable[[str, object], None]) -> None:
    """CPU time, since other work on the machine stretches the wall clock; about 4 s are usual, most of it importing torch."""
    used = sum(map(cpu_seconds, [server.process.pid, *server.children().values()]))
    record_property("startup_seconds", server.startup)
    print(f"ready after {server.startup:.1f} s, {used:.1f} s of CPU time")
    assert used < 20


def test_processes_and_directory(server: Server, base: Path) -> None:
    assert sorted(server.children()) == ["quire-front-0", "quire-front-1", "quire-sched", "quire-worke-0"]
    (directory,) = base.glob("quire-*")  # beside it, the state directory
    assert directory.stat().st_mode & 0o777 == 0o700


def test_an_idle_engine_uses_no_cpu(server: Server, record_property: Callable[[str, object], None]) -> None:
    """Heartbeats and ticks are all that happens. Other work may disturb the first window; a loop that spins shows in each."""
    server.with_kernels()
    pids = [server.process.pid, *server.children().values()]
    shares: list[float] = []
    while len(shares) < 20 and min(shares, default=1.0) > 0.05:
        before, start = sum(map(cpu_seconds, pids)), time.monotonic()
        time.sleep(3.0)
        shares.append((sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - start))
    record_property("idle_cpu_share", min(shares))
    print(f"idle: {100 * min(shares):.1f} % of one core in {len(pids)} processes")
    assert min(shares) < 0.05, shares


def test_a_busy_port_is_refused_at_once(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    with Server("--port", port) as second:
        assert second.wait() == 2
    assert f"port {port} on 127.0.0.1 is in use" in second.lines[-1]


def test_sigterm_lets_a_stream_finish_and_leaves_nothing(tiny_llama: str, runtime: Path) -> None:
    """A long stream begins before SIGTERM; it must end with its last token, and only then does the engine go."""
    with Server(tiny_llama, runtime=runtime) as server:
        server.ready()
        children = server.children()
        body = {"prompt": "Once upon a time", "max_tokens": 500, "temperature": 0, "ignore_eos": True}
        events = server.events("/v1/completions", body)
        next(events)
        server.terminate()
        last = list(events)[-1]
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert not [name for name, pid in children.items() if alive(pid)]
        assert list(runtime.iterdir()) == []
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 5)


def test_a_second_signal_does_not_wait(tiny_llama: str, runtime: Path) -> None:
    with Server(tiny_llama, "--shutdown-timeout", "600", runtime=runtime) as server:
        server.ready()
        events = server.events("/v1/completions", {"prompt": "a", "max_tokens": 1000, "temperature": 0, "ignore_eos": True, "n": 8})
        next(events)
        server.terminate()
        eventually(lambda: "no new requests" in server.output)
        server.process.send_signal(signal.SIGINT)
        reader = threading.Thread(target=lambda: _exhaust(events))
        reader.start()
        assert server.wait() == 0
        reader.join()


def test_sigkill_of_the_supervisor_takes_the_children_along(runtime: Path) -> None:
    with Server(runtime=runtime) as server:
        server.ready()
        children = server.children()
        assert len(children) == 3
        server.process.kill()
        eventually(lambda: not any(alive(pid) for pid in children.values()))
        assert len(list(runtime.iterdir())) == 1
    with Server(runtime=runtime) as after:
        after.ready()
        assert len(list(runtime.iterdir())) == 1, "the dead engine's directory was not swept"
        after.terminate()
        assert after.wait() == 0
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("children", [1, 2], ids=["while it imports", "while its children start"])
def test_a_signal_during_the_start_ends_it_quickly_and_cleanly(children: int, number: signal.Signals, runtime: Path) -> None:
    """The first child is a worker that is started before the supervisor itself is there."""
    with Server(runtime=runtime) as server:
        eventually(lambda: len(children_of(server.process.pid)) >= children)
        server.process.send_signal(number)
        assert server.wait() == 0
    assert list(runtime.iterdir()) == []
    assert "Traceback" not in server.output


def test_chat_in_the_terminal(server: Server) -> None:
    command = [sys.executable, "-m", "quire", "chat", "--url", server.url, "--max-tokens", "8", "--temperature", "0"]
    done = subprocess.run(command, input="hello\n", capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _exhaust(events: Iterator[object]) -> None:
    """Read a stream that may be cut."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        for _ in events:
            pass
