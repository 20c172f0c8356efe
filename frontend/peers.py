"""The frontends of one server, where something lives in the memory of one of them: its id says in which, and requests for it go there.

Each process listens on a Unix socket in the runtime directory, which only the server's own user can enter, with the same application as on
the public one: keys and limits hold there as well.
"""

from __future__ import annotations

import asyncio
import os
import secrets

import aiohttp
from aiohttp import web
from aiohttp.http import HttpVersion11

from frontend.http_errors import HttpError
from ipc.config import ChildSpec

CONNECT_SECONDS = 5.0
# Headers of one connection, which mean nothing on the next; and what the client library writes by itself.
_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "expect", "accept-encoding"}
)


class Peers:
    """index: this process; count: how many there are."""

    def __init__(self, spec: ChildSpec) -> None:
        self.index, self.count = spec.index, spec.config.parallel.frontends
        self._directory = spec.runtime_dir
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    def address(self, index: int) -> str:
        """The socket of a frontend; a new life of it takes the old one's place."""
        return os.path.join(self._directory, f"frontend-{index}-http.sock")

    def new_id(self, prefix: str) -> str:
        """An id of something that lives here."""
        return f"{prefix}{self.index:02x}{secrets.token_hex(15)}"

    def owner(self, identity: str, prefix: str) -> int | None:
        """Where the thing of this id lives, if that is another process."""
        number = identity.removeprefix(prefix)[:2]
        if self.count == 1 or not identity.startswith(prefix) or len(number) < 2 or not set(number) <= set("0123456789abcdef"):
            return None
        index = int(number, 16)
        return index if index != self.index and index < self.count else None

    async def forward(self, request: web.BaseRequest, index: int, body: bytes | None = None) -> web.StreamResponse:
        """Let another frontend answer, and pass on what it says as it comes. Raises HttpError 503 while it cannot be reached."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        try:
            upstream = await self._session(index).request(
                request.method, f"http://frontend{request.path_qs}", headers=headers, data=body, allow_redirects=False
            )
        except (aiohttp.ClientConnectionError, TimeoutError):
            raise HttpError(
                503, "the process that keeps this is starting again; what it kept is lost", None, None, {"Retry-After": "5"}
            ) from None
        async with upstream:
            answer = web.StreamResponse(status=upstream.status, headers=_passed_on(upstream))
            if upstream.content_length is not None:
                answer.content_length = upstream.content_length
            elif request.version >= HttpVersion11:
                answer.enable_chunked_encoding()
            else:
                answer.force_close()
            await answer.prepare(request)
            try:
                async for chunk in upstream.content.iter_any():
                    await answer.write(chunk)
            except aiohttp.ClientError:
                raise ConnectionResetError("the process that keeps this has died") from None
            await answer.write_eof()
            return answer

    async def close(self) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))

    def _session(self, index: int) -> aiohttp.ClientSession:
        if index not in self._sessions:
            self._sessions[index] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self.address(index), limit=0),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[index]


def _passed_on(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP and name.lower() != "date"}
