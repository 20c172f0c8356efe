"""What only the server's owner may do, over HTTP on a Unix socket in the runtime directory; never on a network port.

A few routes without bodies worth speaking of need no HTTP library, which the supervisor does without. Requests are answered one per
connection: curl --unix-socket and `quire admin` are the clients.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ipc import logs
from ipc.arena import Stat, State
from quire.supervisor import Supervisor

log = logging.getLogger(__name__)

SOCKET_NAME = "admin"
_SECONDS = 10.0
_MAX_BODY = 64 * 1024
_REASONS = {200: "OK", 202: "Accepted", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
Answer = tuple[int, dict[str, Any]]


class Admin:
    """Serves the socket of one supervisor, from `start` to `close`. on_drain: begins a shutdown, like SIGTERM."""

    def __init__(self, supervisor: Supervisor, on_drain: Callable[[], None]) -> None:
        self._supervisor, self._on_drain = supervisor, on_drain
        self._server: asyncio.Server | None = None
        self.path = os.path.join(supervisor.runtime_dir, SOCKET_NAME)
        self._routes: dict[str, tuple[str, Callable[[dict[str, Any]], Awaitable[Answer]]]] = {
            "/admin/state": ("GET", self._state),
            "/admin/log_level": ("POST", self._log_level),
            "/admin/reset_prefix_cache": ("POST", self._reset_prefix_cache),
            "/admin/drain": ("POST", self._drain),
        }

    async def start(self) -> None:
        # The directory is the owner's alone already; the mode is for those who look at the socket.
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=_MAX_BODY)
        finally:
            os.umask(before)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                status, document = await self._answer(reader)
                body = json.dumps(document).encode() + b"\n"
                head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # its client is gone or too slow
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= _MAX_BODY:
                raise ValueError
            given = json.loads(await reader.readexactly(length) or b"{}")
            if not isinstance(given, dict):
                raise ValueError
        except (ValueError, RecursionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _problem(400, "the request is not valid HTTP with a JSON object")
        if path not in self._routes:
            return _problem(404, f"there is nothing at {path[:100]}; there are {', '.join(self._routes)}")
        wanted, route = self._routes[path]
        if method != wanted:
            return _problem(405, f"{path} takes {wanted}")
        if method != "GET":
            log.info("admin: %s %s", path, json.dumps(given)[:200])
        return await route(given)

    async def _state(self, _given: dict[str, Any]) -> Answer:
        record = self._supervisor.arena.status("scheduler")
        state = State(int(record[Stat.STATE])).name.lower()
        processes = [
            {"name": child.name, "pid": child.process.pid, "ready": child.ready, "epoch": child.spec.epoch}
            for child in self._supervisor.children
        ]
        return 200, {
            "status": "serving" if state == "ready" else state,
            "log_level": self._supervisor.log_level,
            "processes": processes,
            "running": int(record[Stat.NUM_RUNNING]),
            "waiting": int(record[Stat.NUM_WAITING]),
            "steps": int(record[Stat.STEPS]),
            "kv_blocks_used": int(record[Stat.BLOCKS_USED]),
            "kv_blocks_total": int(record[Stat.BLOCKS_TOTAL]),
        }

    async def _log_level(self, given: dict[str, Any]) -> Answer:
        level = given.get("level")
        if level not in logs.LEVELS:
            return _problem(400, f"level must be one of {', '.join(logs.LEVELS)}")
        self._supervisor.set_log_level(level)
        return 200, {"log_level": level}

    async def _reset_prefix_cache(self, _given: dict[str, Any]) -> Answer:
        try:
            return 200, {"blocks_forgotten": await self._supervisor.reset_prefix_cache()}
        except TimeoutError:
            return _problem(503, "the scheduler does not answer; it may be starting")

    async def _drain(self, _given: dict[str, Any]) -> Answer:
        self._on_drain()
        return 202, {"status": "draining"}


def _problem(status: int, message: str) -> Answer:
    return status, {"error": message}
