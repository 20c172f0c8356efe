"""How the ranks of a group find one another: at a ZeroMQ socket that rank 0 binds in the runtime directory, and where it gives them a word,
such as NCCL's id of the group. Each is told who is still missing, so that whoever has waited too long can say for whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import zmq

from ipc.errors import QuireError

if TYPE_CHECKING:
    Socket = zmq.Socket[bytes]

MEETING_SECONDS = 300
# To hand over what was sent, before the socket goes: to processes that are there and only have to read it.
LINGER_MS = 5000


class _Here(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rank to rank 0, when it comes."""

    rank: int


class _Group(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Rank 0 to the others, whenever it knows more; the word once nobody is missing."""

    missing: list[int]
    word: bytes


_encode = msgspec.msgpack.Encoder().encode
_here, _group = msgspec.msgpack.Decoder(_Here), msgspec.msgpack.Decoder(_Group)


def meet(rank: int, size: int, path: str, word: Callable[[], bytes], seconds: float = MEETING_SECONDS) -> bytes:
    """Wait until all ranks are here; what rank 0's word() gave. Raises QuireError naming the ranks that did not come in time.

    path: of the socket, which no earlier group has used, in a directory that is this user's alone.
    """
    context: zmq.Context[Socket] = zmq.Context()
    with context, context.socket(zmq.DEALER if rank else zmq.ROUTER) as socket:
        socket.setsockopt(zmq.LINGER, 0 if rank else LINGER_MS)
        return _come(socket, rank, size, path, seconds) if rank else _welcome(socket, size, path, word, seconds)


def name_ranks(numbers: Iterable[int]) -> str:
    """'rank 1', 'ranks 1, 2'."""
    words = list(map(str, numbers))
    return f"rank{'s' * (len(words) > 1)} {', '.join(words)}"


def _welcome(socket: Socket, size: int, path: str, word: Callable[[], bytes], seconds: float) -> bytes:
    given, deadline = word(), time.monotonic() + seconds
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(f"ipc://{path}")
    names: dict[int, bytes] = {}  # what ZeroMQ calls those who have come
    while missing := [each for each in range(1, size) if each not in names]:
        if not _readable(socket, deadline):
            raise _absent(0, size, missing, seconds)
        name, frame = socket.recv_multipart()
        try:
            names[_here.decode(frame).rank] = name
        except msgspec.MsgspecError:
            continue  # no rank's word; whoever sent it is missed like the others
        _tell(socket, names, size, given)
    return given


def _tell(socket: Socket, names: dict[int, bytes], size: int, given: bytes) -> None:
    missing = [each for each in range(1, size) if each not in names]
    frame = _encode(_Group(missing, b"" if missing else given))
    for rank, name in list(names.items()):
        try:
            socket.send_multipart([name, frame], zmq.NOBLOCK)
        except zmq.ZMQError:  # it has gone again
            del names[rank]


def _come(socket: Socket, rank: int, size: int, path: str, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    socket.connect(f"ipc://{path}")  # goes on trying until rank 0 has bound it
    socket.send(_encode(_Here(rank)))
    group = _Group([0], b"")
    while group.missing:
        if not _readable(socket, deadline):
            raise _absent(rank, size, group.missing, seconds)
        group = _group.decode(socket.recv())
    return group.word


def _readable(socket: Socket, deadline: float) -> bool:
    return bool(socket.poll(max(0, int(1e3 * (deadline - time.monotonic())))))


def _absent(rank: int, size: int, missing: list[int], seconds: float) -> QuireError:
    return QuireError(f"rank {rank} waited {seconds:.0f} s for {name_ranks(missing)} of {size}, which did not come")
