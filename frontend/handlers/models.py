"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.generation import json_answer

if TYPE_CHECKING:
    from frontend.app import App

_STARTED = int(time.time())


async def list_models(app: App, _request: web.BaseRequest) -> web.Response:
    return json_answer({"object": "list", "data": [_card(app)]})


async def get_model(app: App, request: web.BaseRequest) -> web.Response:
    """Raises HttpError 404 for any name but the served one."""
    app.check_model(request.url.path.removeprefix("/v1/models/"), required=True)
    return json_answer(_card(app))


def _card(app: App) -> dict[str, Any]:
    model = app.spec.model
    return {
        "id": model.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "quire",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }
