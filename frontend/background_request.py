"""A request that no client sent: for handlers that run on behalf of a batch."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from frontend.connection import Connection


def background_request(connection: Connection, path: str, body: bytes) -> web.BaseRequest:
    """A POST of JSON. connection: one without a transport; nothing is ever written to it."""
    loop = asyncio.get_running_loop()
    headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json", "Content-Length": str(len(body))}))
    message = RawRequestMessage("POST", path, HttpVersion11, headers, (), False, None, False, False, URL(path))
    payload = StreamReader(connection, len(body) + 1, loop=loop)
    payload.feed_data(body)
    payload.feed_eof()
    # A handler that answers with a document neither writes nor looks at its task.
    return web.BaseRequest(message, payload, connection, cast(Any, None), cast(Any, asyncio.current_task()), loop)
