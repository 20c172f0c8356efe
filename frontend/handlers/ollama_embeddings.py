"""Ollama's API: /api/embed, and the older /api/embeddings for one prompt."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from aiohttp import web

from frontend import vectors
from frontend.body import decoder, read_json
from frontend.generation import json_answer
from frontend.handlers.embeddings import compute, count_tokens
from frontend.handlers.ollama import check_model
from frontend.preparation import Truncation
from frontend.schemas.numbers import integer
from frontend.schemas.ollama import OllamaEmbedOneRequest, OllamaEmbedRequest, keep_alive_seconds
from frontend.schemas.prompts import prompts_of

if TYPE_CHECKING:
    from frontend.app import App

_EMBED, _EMBED_ONE = decoder(OllamaEmbedRequest), decoder(OllamaEmbedOneRequest)
_WHOLE_CONTEXT = Truncation(-1, keeps_end=False)


async def embed(app: App, request: web.BaseRequest) -> web.Response:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _EMBED, app.server_config.max_body_bytes, any_type=True)
    check_model(app, body.model)
    keep_alive_seconds(body.keep_alive)
    dimensions = integer("dimensions", body.dimensions) or None
    vectors.check_dimensions(dimensions, app.spec.model.hidden_size)
    inputs = prompts_of("input", body.input, app.server_config.max_embedding_inputs) if body.input else []
    cut = None if body.truncate is False else _WHOLE_CONTEXT
    streams = await compute(app, inputs, _identity(), arrival_ns, truncation=cut, timeout=body.timeout)
    return json_answer(
        {
            "model": app.spec.model.name,
            "embeddings": [vectors.finish(stream.vector, dimensions, normalize=True).tolist() for stream in streams],
            "total_duration": time.monotonic_ns() - arrival_ns,
            "load_duration": 0,
            "prompt_eval_count": count_tokens(streams),
        }
    )


async def embed_one(app: App, request: web.BaseRequest) -> web.Response:
    """The vector as the model gives it, not normalised, as Ollama does here. Raises as `embed` does."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _EMBED_ONE, app.server_config.max_body_bytes, any_type=True)
    check_model(app, body.model)
    keep_alive_seconds(body.keep_alive)
    if not body.prompt:
        return json_answer({"embedding": []})
    [stream] = await compute(app, [body.prompt], _identity(), arrival_ns, truncation=_WHOLE_CONTEXT, timeout=body.timeout)
    return json_answer({"embedding": vectors.finish(stream.vector, None, normalize=False).tolist()})


def _identity() -> str:
    return f"ollama-{secrets.token_hex(12)}"
