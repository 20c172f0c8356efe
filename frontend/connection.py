"""Client connections: aiohttp's protocol with our limits, JSON errors, and the flow control that SSE responses listen to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from frontend.http_errors import error_body
from frontend.sse import TRANSPORT_HIGH_WATER, SseResponse
from ipc.config import ServerConfig

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
SERVER = "quire"  # and no versions of what it is made of
MAX_LINE_BYTES = 8190
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
_FULL = error_body(503, "too many connections")
_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(RequestHandler):
    """One client. `response`: the SSE response that is being written, if there is one."""

    __slots__ = ("_header_timer", "_server", "response")

    def __init__(self, server: HttpServer, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._header_timer: asyncio.TimerHandle | None = None
        self.response: SseResponse | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(high=TRANSPORT_HIGH_WATER)
        self._server.count(+1)
        if self._server.full:
            self.transport.write(_FULL_ANSWER)
            self.close()
            self.transport.close()
            return
        # aiohttp's own timer begins with the first request; somebody who never sends one must not keep the place.
        self._header_timer = self._loop.call_later(self._server.header_seconds, self._no_request_yet)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        if self.response is not None:
            self.response.pause()
        super().connection_lost(exc)
        self._server.count(-1)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.response is not None:
            self.response.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.response is not None:
            self.response.resume()

    @property
    def body_seconds(self) -> float:
        """How long a request's body may take to arrive."""
        return self._server.body_seconds

    async def drained(self) -> None:
        """Wait until the transport's buffer has room. Raises ConnectionError when the client leaves."""
        await self._drain_helper()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What aiohttp could not parse, or an error that escaped our own handling."""
        if status >= 500 and exc is not None:
            log.error("unexpected error in the server", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        text = "the request is not valid HTTP" if status < 500 else "internal error; the server's log has the details"
        answer = web.Response(
            status=status,
            body=error_body(status, text, None, "bad_http" if status < 500 else "internal_error"),
            content_type="application/json",
            headers={"Server": SERVER},
        )
        answer.force_close()
        return answer

    def _no_request_yet(self) -> None:
        if self._request_count == 0:
            self.force_close()


class HttpServer(web.Server):
    """Makes a Connection for each client; it is the acceptor's factory."""

    def __init__(self, handler: Handler, config: ServerConfig, on_count: Callable[[int], None]) -> None:
        # Cancelling the handler is how a request learns at once that its client has left.
        super().__init__(handler, handler_cancellation=True)
        self._max_connections = config.max_connections
        self.header_seconds, self.body_seconds = config.header_timeout, config.body_timeout
        self._on_count = on_count
        self._open = 0
        self._options = {
            "loop": asyncio.get_running_loop(),
            "access_log": None,
            "logger": log,
            "auto_decompress": False,
            "keepalive_timeout": config.keepalive_timeout,
            "lingering_time": LINGER_SECONDS,
            "max_line_size": MAX_LINE_BYTES,
            "max_field_size": MAX_HEADER_BYTES,
            "max_headers": MAX_HEADERS,
        }

    def __call__(self) -> Connection:
        return Connection(self, **self._options)

    @property
    def full(self) -> bool:
        return self._open > self._max_connections

    def count(self, change: int) -> None:
        """A connection has come (+1) or gone (-1)."""
        self._open += change
        self._on_count(self._open)
