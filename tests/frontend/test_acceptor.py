"""The acceptor: takes what comes, leaves connections to whoever has fewer, and outlives a lack of descriptors."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator

import pytest

from frontend import acceptor
from frontend.acceptor import Acceptor


class Counting(asyncio.Protocol):
    """Counts connections that were made."""

    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).made += 1


class Scarce:
    """A listener whose accept fails for want of descriptors, as often as told."""

    def __init__(self, inner: socket.socket, failures: int) -> None:
        self._inner, self.failures = inner, failures

    def fileno(self) -> int:
        return self._inner.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._inner.accept()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.setblocking(False)
        Counting.made = 0
        yield found


async def connected(listener: socket.socket, count: int) -> list[socket.socket]:
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        clients.append(client)
    return clients


async def made(count: int) -> None:
    async with asyncio.timeout(60):
        while Counting.made < count:
            await asyncio.sleep(0.001)


def close(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()


def test_alone_it_takes_everything_until_it_is_closed(listener: socket.socket) -> None:
    async def scene() -> None:
        taking = Acceptor(asyncio.get_running_loop(), listener, Counting, lambda: Counting.made, lambda: None)
        clients = await connected(listener, 40)
        await made(40)
        taking.close()
        clients += await connected(listener, 3)
        await asyncio.sleep(0.05)
        assert Counting.made == 40
        close(clients)

    asyncio.run(scene())


def test_with_clearly_more_than_another_it_lets_a_moment_pass(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        others = 0
        # Within the lead: at once. The wait is made so long that what came through it would be seen.
        monkeypatch.setattr(acceptor, "YIELD_SECONDS", 1000.0)
        first = Acceptor(loop, listener, Counting, lambda: Counting.made, lambda: others)
        clients = await connected(listener, 1)
        await made(1)
        clients += await connected(listener, 20)
        await asyncio.sleep(0.1)
        assert 1 <= Counting.made <= acceptor.LEAD + 1, "the others had their chance"
        first.close()
        monkeypatch.setattr(acceptor, "YIELD_SECONDS", 0.01)
        second = Acceptor(loop, listener, Counting, lambda: Counting.made, lambda: others)
        await made(5)  # nobody came for them
        others = 1000
        await made(21)
        second.close()
        close(clients)

    asyncio.run(scene())


def test_a_lack_of_descriptors_is_waited_out(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(acceptor, "PAUSE_SECONDS", 0.01)
        scarce = Scarce(listener, 3)
        taking = Acceptor(asyncio.get_running_loop(), scarce, Counting, lambda: Counting.made, lambda: None)  # type: ignore[arg-type]
        clients = await connected(listener, 5)
        await made(5)
        assert scarce.failures == 0
        taking.close()
        close(clients)

    asyncio.run(scene())
