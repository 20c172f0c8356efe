"""Takes connections from a listening socket that several processes share, so that each gets about as many.

All of them wake when somebody connects, and left to themselves the one that is fastest that day takes most: of 256 connections, four
frontends got 8 to 120 (`python -m bench.engine_alone`). So a process that has clearly more connections than another leaves the next ones
alone for a moment. It comes back to those that are still there: the other may be busy, hung, or dead.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

YIELD_SECONDS = 0.002
PAUSE_SECONDS = 1.0
# Accepted in one go before the loop does anything else.
BURST = 16
# Taken after a moment in which nobody else took them; few, for the others may only be slow.
LEFT_OVER = 4
# More connections than the least busy process by so many, or by this share of them, is clearly more.
LEAD, LEAD_SHARE = 2, 1 / 16
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Accepts on `listener` until closed.

    factory: makes a connection's protocol. own: connections this process has. least: the fewest that another process has, None
    when there is no other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        own: Callable[[], int],
        least: Callable[[], int | None],
    ) -> None:
        self._loop, self._listener, self._factory, self._own, self._least = loop, listener, factory, own, least
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(listener.fileno(), self._readable)

    def close(self) -> None:
        """Accept nothing more. The socket stays open: it is the supervisor's."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener.fileno())

    def _readable(self) -> None:
        for _ in range(BURST):
            if self._leads():
                self._wait(YIELD_SECONDS)
                return
            if not self._accept():
                return

    def _leads(self) -> bool:
        least = self._least()
        return least is not None and self._own() + len(self._connecting) > least + LEAD + int(least * LEAD_SHARE)

    def _accept(self) -> bool:
        """Take one connection; whether there may be another."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # the client has left already
            return True
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            log.error("cannot accept connections: %s; trying again in %.0f s", error.strerror, PAUSE_SECONDS)
            self._wait(PAUSE_SECONDS)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError as error:
            connection.close()
            log.debug("a connection failed at once: %s", error)

    def _wait(self, seconds: float) -> None:
        """Look away, and then take what nobody else has taken."""
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        for _ in range(LEFT_OVER):
            if not self._accept():
                break
        if self._timer is None:
            self._loop.add_reader(self._listener.fileno(), self._readable)
