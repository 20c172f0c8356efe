"""A client that holds thousands of streams and costs little: one process, one loop, no parsing until all is over.

`python -m bench.stream_load` reads a JSON order on stdin and prints a JSON line: see Order. bench.engine_alone starts it.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
import time
from collections import Counter
from typing import cast

import msgspec
import numpy as np
import uvloop

TEXT = re.compile(rb'"text":"([^"]*)"')
CONNECT_AT_ONCE = 64


class Order(msgspec.Struct):
    """streams connections to port, each asking `rounds` times, one after the other on the same connection, for `tokens` tokens.

    words: text of each token of the worker's cycle. arrivals: file to which (step in the cycle, nanoseconds) of each token are saved.
    rest: seconds between two looks at the sockets, 0 for as soon as something comes. A client that waits is woken by the server's send,
    which costs the server as much again as sending; clients on other machines do not cost it that.
    """

    port: int
    streams: int
    tokens: int
    rounds: int
    words: list[str]
    arrivals: str
    rest: float = 0.0


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, order: Order, request: bytes, done: asyncio.Future[None]) -> None:
        self._request, self._done, self._left = request, done, order.rounds
        self.parts: list[tuple[int, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def begin(self) -> None:
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.monotonic_ns(), data))
        if data.endswith(b"0\r\n\r\n"):
            self._left -= 1
            if self._left:
                self.begin()
            else:
                self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(f"the server closed a stream: {exc}"))


async def load(order: Order) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    body = json.dumps({"prompt": [300, 301, 302], "max_tokens": order.tokens, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    request = head % len(body) + body
    done: list[asyncio.Future[None]] = [loop.create_future() for _ in range(order.streams)]
    clients = [Client(order, request, future) for future in done]
    began = time.perf_counter()
    for at in range(0, order.streams, CONNECT_AT_ONCE):
        group = clients[at : at + CONNECT_AT_ONCE]
        await asyncio.gather(*(loop.create_connection(lambda client=client: client, "127.0.0.1", order.port) for client in group))
    connected = time.perf_counter()
    print(json.dumps({"connected_s": connected - began}), flush=True)
    sys.stdin.readline()  # go
    began, cpu = time.perf_counter(), time.process_time()
    for client in clients:
        client.begin()
    resting = loop.create_task(_rest(order.rest)) if order.rest else None
    await asyncio.gather(*done)
    if resting is not None:
        resting.cancel()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    for client in clients:
        client.transport.abort()
    steps, times, tokens = arrivals(clients, {word.encode(): at for at, word in enumerate(order.words)})
    np.save(order.arrivals, np.array([steps, times], np.int64))
    expected = order.tokens * order.rounds
    short = Counter(tokens)
    short.pop(expected, None)
    return {"wall_s": wall, "tokens": sum(tokens), "client_cpu_s": cpu, "wrong_lengths": len(short)}


async def _rest(seconds: float) -> None:
    """Sleep without waiting for the sockets, then let everything that has come be read; for ever."""
    while True:
        time.sleep(seconds)
        for _ in range(2):  # the loop looks at its sockets before the second of these callbacks at the latest
            await asyncio.sleep(0)


def arrivals(clients: list[Client], cycle: dict[bytes, int]) -> tuple[list[int], list[int], list[int]]:
    """Place in the cycle and time of each token, and tokens per client."""
    steps: list[int] = []
    times: list[int] = []
    counts = []
    width = len(next(iter(cycle)))  # of each word; texts that gathered come joined
    for client in clients:
        before = len(steps)
        for now, data in client.parts:
            for text in TEXT.findall(data):
                for at in range(0, len(text), width):
                    steps.append(cycle[text[at : at + width]])
                    times.append(now)
        counts.append(len(steps) - before)
    return steps, times, counts


def main() -> None:
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(uvloop.run(load(order))), flush=True)


if __name__ == "__main__":
    main()
