"""Connections over several frontends: they fall evenly, are used again, and slow readers among many streams hold up nobody."""

from __future__ import annotations

import json
import os
import socket

import pytest

from bench import engine_alone
from ipc.arena import Stat
from ipc.config import Config, SchedulerConfig
from tests.api.server import ApiServer, api_server, until

FRONTENDS = 3
CONNECTIONS = 150


def open_connections(server: ApiServer) -> list[int]:
    return [int(server.engine.arena.status("frontend", index)[Stat.OPEN_CONNECTIONS]) for index in range(FRONTENDS)]


def assert_even(counts: list[int]) -> None:
    """Far from the one to six of frontends that race for each; how near to equal depends on who gets a core when."""
    fair = CONNECTIONS / FRONTENDS
    assert all(fair / 2 <= count <= 1.6 * fair for count in counts), counts


def connect(server: ApiServer, count: int, known: int) -> list[socket.socket]:
    """A few at a time, as users come: a process that had no core for a moment gets the next ones. known: those that are open already."""
    clients: list[socket.socket] = []

    def all_taken() -> bool:
        return sum(open_connections(server)) == known + len(clients)

    while len(clients) < count:
        clients += [server.connect() for _ in range(5)]
        until(all_taken)
    return clients


def test_connections_fall_evenly_on_frontends_and_a_new_one_catches_up() -> None:
    with api_server(frontends=FRONTENDS) as server:
        clients = connect(server, CONNECTIONS, 0)
        assert_even(open_connections(server))
        # Whoever has lost its clients gets the next ones.
        for client in clients[: CONNECTIONS // 2]:
            client.close()
        until(lambda: sum(open_connections(server)) == CONNECTIONS - CONNECTIONS // 2)
        clients = clients[CONNECTIONS // 2 :] + connect(server, CONNECTIONS // 2, CONNECTIONS // 2)
        assert_even(open_connections(server))
        for client in clients:
            client.close()


def test_a_connection_serves_request_after_request() -> None:
    with api_server() as server, server.connect() as connection:
        stream = connection.makefile("rb")
        for number in range(20):
            body = json.dumps({"prompt": [300 + number] * 4, "max_tokens": 4, "ignore_eos": True, "stream": number % 2 == 0}).encode()
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            assert stream.readline().startswith(b"HTTP/1.1 200"), number
            assert _read_body(stream).count(b"choices") >= 1
        server.at_rest()
        assert int(server.engine.arena.status("frontend")[Stat.OPEN_CONNECTIONS]) == 1


def test_slow_readers_among_many_are_bounded_and_hold_up_nobody() -> None:
    config = Config(scheduler=SchedulerConfig(max_num_seqs=128))
    with api_server(config, num_blocks=8192) as server:
        sleepers = [server.connect(receive_buffer=4096) for _ in range(64)]
        for client in sleepers:
            send_stream(client, 400)
        until(lambda: server.stat(Stat.NUM_RUNNING) >= 1)
        for _ in range(10):
            status, answer = server.post("/v1/completions", {"prompt": [300, 301], "max_tokens": 8, "ignore_eos": True})
            assert status == 200 and answer["usage"]["completion_tokens"] == 8
        # Their streams end in the engine although nobody reads: what they are still to get is held, within bounds.
        server.at_rest()
        for client in sleepers:
            client.close()
        until(lambda: int(server.engine.arena.status("frontend")[Stat.OPEN_CONNECTIONS]) == 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_4096_streams_at_once_each_get_all_their_tokens() -> None:
    result = engine_alone.measure(streams=4096, frontends=2, tokens=16, rounds=1, pace=0.0)
    assert result["tokens"] == 4096 * 16 and result["wrong_lengths"] == 0
    assert min(result["connections"]) > 0.7 * max(result["connections"])
    # A connection that waits for its next request is aiohttp's parser, buffers of ours and a transport; far from a megabyte.
    assert result["kib_per_idle_connection"] < 64 and result["kib_per_stream"] < 256


def send_stream(connection: socket.socket, tokens: int) -> None:
    body = json.dumps({"prompt": [300 + os.getpid() % 7, 301], "max_tokens": tokens, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)


def _read_body(stream: object) -> bytes:
    """The rest of one answer: headers, then a body by length or in chunks."""
    length, chunked = 0, False
    while line := stream.readline().strip().lower():  # type: ignore[attr-defined]
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        chunked = chunked or line == b"transfer-encoding: chunked"
    if not chunked:
        return bytes(stream.read(length))  # type: ignore[attr-defined]
    body = b""
    while size := int(stream.readline(), 16):  # type: ignore[attr-defined]
        body += stream.read(size + 2)[:-2]  # type: ignore[attr-defined]
    stream.readline()  # type: ignore[attr-defined]
    return body
