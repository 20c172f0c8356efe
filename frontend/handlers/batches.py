"""/v1/batches: create, list, read, cancel. frontend/batch_runner.py runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from frontend.batch_store import WINDOW
from frontend.body import decoder, read_json
from frontend.generation import json_answer
from frontend.handlers.files import page, page_limit
from frontend.schemas.batches import BatchRequest

if TYPE_CHECKING:
    from frontend.app import App

MAX_PAGE, PAGE = 100, 20
_DECODER = decoder(BatchRequest)


async def create(app: App, request: web.BaseRequest) -> web.Response:
    """Raises InvalidRequestError; what is wrong inside of the file shows in the batch."""
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    body.check(app.batch_endpoints, WINDOW)
    seconds = body.output_expires_after.check("output_expires_after") if body.output_expires_after is not None else None
    made = await app.batches.create(body.endpoint, body.input_file_id, body.metadata, seconds)
    app.batch_runner.wake()
    return json_answer(made)


async def list_batches(app: App, request: web.BaseRequest) -> web.Response:
    found, more = await app.batches.page(request.rel_url.query.get("after"), page_limit(request, PAGE, MAX_PAGE))
    return json_answer(page(found, more))


async def get(app: App, request: web.BaseRequest) -> web.Response:
    return json_answer(await app.batches.get(request.path.split("/")[3]))


async def cancel(app: App, request: web.BaseRequest) -> web.Response:
    found = await app.batches.cancel(request.path.split("/")[3])
    app.batch_runner.wake()
    return json_answer(found)
