"""A datagram socket beside a ZeroMQ socket: the short way for messages between two processes of one machine.

ZeroMQ hands each message to a thread of its own, which hands it to a thread of the reader's, which wakes the reader: three wake-ups
where the kernel needs one. A Unix datagram socket has that one, and keeps order and message boundaries. What it lacks is patience: it
takes some ten datagrams that are not read yet, none above its buffer, and none for a reader that is not there. Then `send` says no
and the message goes by ZeroMQ (ipc/channels.py puts the two ways into one order).
"""

from __future__ import annotations

import contextlib
import os
import socket

MAX_BYTES = 1 << 16


class Lane:
    """One bound datagram socket.

    `address` is the router's 'ipc://DIRECTORY/ENDPOINT'; a dealer gives its `identity`, too, and is bound at
    DIRECTORY/IDENTITY.E, E the first letter of the endpoint. Raises OSError where that can't be bound.
    """

    def __init__(self, address: str, identity: str = "") -> None:
        self._directory, _, endpoint = address.removeprefix("ipc://").rpartition("/")
        self._suffix = f".{endpoint[0]}"
        self._router = f"{self._directory}/{endpoint}.lane"
        self._path = self._of(identity) if identity else self._router
        self._peers: dict[str, str] = {"": self._router}
        self._buffer = bytearray(MAX_BYTES + 1)
        self._view = memoryview(self._buffer)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._socket.bind(self._path)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, peer: str = "") -> bool:
        """Send to a dealer by its identity, or to the router (''). False: not taken, whatever the reason."""
        if len(data) > MAX_BYTES:
            return False
        path = self._peers.get(peer)
        if path is None:
            path = self._peers[peer] = self._of(peer)
        try:
            self._socket.sendto(data, path)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[str, memoryview] | None:
        """The sender's identity ('': it has none of ours) and the bytes, which the next call overwrites; None if nothing waits."""
        try:
            size, sender = self._socket.recvfrom_into(self._buffer)
        except BlockingIOError:
            return None
        return self._identity(sender), self._view[:size]

    def forget(self, peer: str) -> None:
        """Remove what a dealer that died has left."""
        self._peers.pop(peer, None)
        with contextlib.suppress(OSError):
            os.unlink(self._of(peer))

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _of(self, identity: str) -> str:
        # An identity came over a socket; it may name a file of this directory and nothing else.
        return f"{self._directory}/{os.path.basename(identity)}{self._suffix}"

    def _identity(self, sender: object) -> str:
        if not isinstance(sender, str) or not sender.endswith(self._suffix):
            return ""
        directory, _, name = sender.removesuffix(self._suffix).rpartition("/")
        return name if directory == self._directory else ""
