"""For those who run the server: GET /, /health, /metrics, /version, /openapi.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from frontend import metrics
from frontend.admission import RETRY_LOADING_SECONDS
from frontend.generation import json_answer

if TYPE_CHECKING:
    from frontend.app import App


async def health(app: App, _request: web.BaseRequest) -> web.Response:
    """200 while the engine serves, 503 while it loads, drains or does not move. Reads shared memory; asks the engine nothing."""
    problem, details = app.admission.health()
    if problem == "ok":
        return json_answer({"status": "ok", **details})
    answer = json_answer({"status": problem, **details}, 503)
    answer.headers["Retry-After"] = str(int(RETRY_LOADING_SECONDS))
    return answer


async def root(_app: App, _request: web.BaseRequest) -> web.Response:
    """Ollama's command line asks whether a server is there before it does anything, with HEAD."""
    return web.Response(text="quire is running\n")


async def show_metrics(app: App, _request: web.BaseRequest) -> web.Response:
    text = metrics.render(app.metrics, app.spec, app.arena)
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def version(app: App, _request: web.BaseRequest) -> web.Response:
    return json_answer({"version": app.version})


async def openapi(app: App, _request: web.BaseRequest) -> web.Response:
    """The description of all routes, made when somebody first asks for it."""
    return web.Response(body=app.openapi_json, content_type="application/json")
