"""Stored responses: in this process's memory, the least recently used forgotten first. A restart forgets all of them.

With several frontends each keeps those it has made, and the others pass requests for them on to it (frontend/peers.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from frontend.http_errors import HttpError, not_supported
from frontend.sse import Framed, SseResponse, encode
from frontend.stream import Stream
from ipc.config import ServerConfig
from ipc.errors import InvalidRequestError

MAX_LOG_BYTES = 16 * 1024 * 1024
RUNNING = ("queued", "in_progress")


class EventLog:
    """A background response's events, number n at place n, and those who follow them as they come: a FrameSink of frontend/part_stream.py.

    on_end: called with the error, if there was one, before the followers hear of the end.
    """

    def __init__(self, keep: bool = True) -> None:
        """keep: whether anybody may want to read the events."""
        self.on_end: Callable[[Exception | None], None] | None = None
        self.over = False
        self._kept = keep
        self.events: list[bytes] = []
        self.followers: list[SseResponse] = []
        self.size = 0
        self.too_long = False  # events were dropped; they cannot be read again

    def add(self, stream: Framed) -> None:
        pass

    def preface(self, data: bytes) -> None:
        self.frame(None, data)

    def text(self, stream: Framed, body: bytes) -> None:
        self.frame(stream, stream.head + body + stream.tail)

    def frame(self, stream: Framed | None, data: bytes) -> None:
        if self._kept:
            for event in data.split(b"\n\n")[:-1]:
                self._keep(event + b"\n\n")
        for follower in self.followers:
            follower.frame(None, data)

    def ended(self, error: Exception | None) -> None:
        if self.on_end is not None:
            self.on_end(error)
        self.over = True
        for follower in self.followers:
            if not follower.done.done():
                follower.done.set_result(None)

    def _keep(self, event: bytes) -> None:
        self.size += len(event)
        if self.size > MAX_LOG_BYTES:
            self.too_long = True
            self.events.clear()
        if not self.too_long:
            self.events.append(event)


@dataclass
class Stored:
    """One response. document: as clients see it. items: what the conversation holds up to and with its input; its output is in document.

    log: of a background response that streams. stream: while it runs in the background.
    """

    document: dict[str, Any]
    items: list[dict[str, Any]]
    log: EventLog | None = None
    stream: Stream | None = None
    size: int = field(default=0, compare=False)

    @property
    def running(self) -> bool:
        return self.document["status"] in RUNNING

    def conversation(self) -> list[dict[str, Any]]:
        """All items that a response which continues this one begins with."""
        return [*self.items, *self.document["output"]]


class Store:
    """By id. Counts and bytes are bounded; a response that still runs is not forgotten."""

    def __init__(self, config: ServerConfig, frontends: int) -> None:
        """frontends: processes on the same port, each of which has its share."""
        self._max_count, self._max_bytes = -(-config.max_stored_responses // frontends), config.max_stored_bytes // frontends
        self._found: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0
        self.why_not = "" if self._max_count else "this server stores no responses"

    def __len__(self) -> int:
        return len(self._found)

    def has(self, stored: Stored) -> bool:
        """Whether it is still kept."""
        return self._found.get(stored.document["id"]) is stored

    def need(self, param: str) -> None:
        """Raise InvalidRequestError, naming `param`, unless responses are stored here."""
        if self.why_not:
            raise not_supported(self.why_not, param)

    def put(self, stored: Stored) -> None:
        """Keep it, or take note that it has grown; others may have to go."""
        identity = stored.document["id"]
        if identity in self._found:
            self._bytes -= self._found[identity].size
        stored.size = len(encode(stored.document)) + len(encode(stored.items)) + (stored.log.size if stored.log is not None else 0)
        self._bytes += stored.size
        self._found[identity] = stored
        self._found.move_to_end(identity)
        self._make_room()

    def get(self, identity: str) -> Stored:
        """Raises HttpError 404."""
        stored = self._found.get(identity)
        if stored is None:
            raise HttpError(404, f"there is no response {identity!r:.120}" + (f": {self.why_not}" if self.why_not else ""), "response_id")
        self._found.move_to_end(identity)
        return stored

    def previous(self, identity: str) -> Stored:
        """The response that another continues. Raises InvalidRequestError."""
        self.need("previous_response_id")
        stored = self._found.get(identity)
        if stored is None:
            raise InvalidRequestError(
                f"there is no response {identity!r:.120} to continue", "previous_response_id", "previous_response_not_found"
            )
        if stored.running:
            raise InvalidRequestError("that response has not ended yet", "previous_response_id")
        self._found.move_to_end(identity)
        return stored

    def remove(self, identity: str) -> None:
        """Forget it."""
        stored = self._found.pop(identity, None)
        if stored is not None:
            self._bytes -= stored.size

    def _make_room(self) -> None:
        for identity, stored in list(self._found.items()):
            if len(self._found) <= self._max_count and self._bytes <= self._max_bytes:
                return
            if not stored.running:
                self.remove(identity)
