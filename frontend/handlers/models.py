"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.generation import json_answer

if TYPE_CHECKING:
    from frontend.app import App

_STARTED = int(time.time())


async def list_models(app: App, request: web.BaseRequest) -> web.Response:
    """In the shape of the API that the client speaks: Anthropic's clients say so in a header.

    503 while the model is loading: tools that wait for a server poll this path, and take its first 200 for readiness.
    """
    app.admission.check_served()
    if "anthropic-version" in request.headers:
        card = _anthropic_card(app)
        return json_answer({"data": [card], "has_more": False, "first_id": card["id"], "last_id": card["id"]})
    return json_answer({"object": "list", "data": [_card(app)]})


async def get_model(app: App, request: web.BaseRequest) -> web.Response:
    """Raises HttpError 404 for any name but the served one."""
    app.check_model(request.url.path.removeprefix("/v1/models/"), required=True)
    return json_answer(_anthropic_card(app) if "anthropic-version" in request.headers else _card(app))


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


def _anthropic_card(app: App) -> dict[str, Any]:
    model = app.spec.model
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_STARTED)),
        "max_input_tokens": model.max_model_len - 1,
        "max_tokens": model.max_model_len - 1,
        "lifecycle": "active",
    }
