"""POST /v1/embeddings: texts in, vectors out."""

from __future__ import annotations

import base64
import itertools
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend import conversation, vectors
from frontend.body import decoder, read_json
from frontend.generation import json_answer
from frontend.preparation import Truncation
from frontend.schemas.embeddings import EmbeddingRequest
from frontend.schemas.numbers import integer
from frontend.tools import NO_TOOLS
from frontend.vector_bytes import F32, packed
from frontend.vectors import VectorStream

if TYPE_CHECKING:
    from frontend.app import App

_DECODER = decoder(EmbeddingRequest)


async def create(app: App, request: web.BaseRequest) -> web.Response:
    """Raises InvalidRequestError and the engine's errors; see frontend/http_errors.py for their status."""
    arrival_ns = time.monotonic_ns()
    body = await read_json(request, _DECODER, app.server_config.max_body_bytes)
    app.check_model(body.model)
    body.check(app.spec.config.scheduler.scheduling_policy)
    dimensions = body.length
    vectors.check_dimensions(dimensions, app.spec.model.hidden_size)
    identity = body.request_id or f"embd-{secrets.token_hex(14)}"
    inputs: list[str | list[int]]
    if body.messages:
        inputs = [(await conversation.render(app.client, body.conversation(), NO_TOOLS))[1]]
    else:
        inputs = body.prompts(app.server_config.max_embedding_inputs)
    streams = await compute(
        app,
        inputs,
        identity,
        arrival_ns,
        truncation=body.truncation(),
        add_special_tokens=body.add_special_tokens is not False,
        priority=integer("priority", body.priority) or 0,
        cache_salt=body.cache_salt or "",
        timeout=body.timeout,
    )
    found = [vectors.finish(stream.vector, dimensions, body.normalized) for stream in streams]
    count = count_tokens(streams)
    about: dict[str, Any] = {
        "id": identity,
        "created": int(time.time()),
        "model": app.spec.model.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    if body.as_bytes:
        return _bytes_answer(body, found, about)
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(found):
        shown = base64.b64encode(_packed(body, vector)).decode() if body.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return json_answer({**about, "object": "list", "data": data})


def _packed(body: EmbeddingRequest, vector: F32) -> bytes:
    return packed(vector, body.embed_dtype or "float32", body.endianness or "native")


def _bytes_answer(body: EmbeddingRequest, found: list[F32], about: dict[str, Any]) -> web.Response:
    """The vectors' bytes, one after the other; with `bytes`, the header `metadata` says where each is, in vLLM's shape."""
    content = [_packed(body, vector) for vector in found]
    headers = {}
    if body.encoding_format == "bytes":
        form = {"embed_dtype": body.embed_dtype or "float32", "endianness": body.endianness or "native"}
        ends = list(itertools.accumulate(map(len, content), initial=0))
        data = [
            {"index": index, **form, "start": start, "end": end, "shape": list(vector.shape)}
            for index, (vector, (start, end)) in enumerate(zip(found, itertools.pairwise(ends)))
        ]
        # ASCII, and escaped: a model's or a request's name may hold anything.
        headers["metadata"] = json.dumps({**about, "data": data})
    return web.Response(body=b"".join(content), headers=headers, content_type="application/octet-stream")


async def compute(
    app: App,
    inputs: list[str | list[int]],
    identity: str,
    arrival_ns: int,
    *,
    truncation: Truncation | None = None,
    add_special_tokens: bool = True,
    priority: int = 0,
    cache_salt: str = "",
    timeout: float | None = None,
) -> list[VectorStream]:
    """All inputs' vectors, in order. Raises as `create` does."""
    app.check_room(len(inputs))
    works = [
        await app.client.preparer.prepare_embedding(
            each,
            request_id=identity if len(inputs) == 1 else f"{identity}-{place}",
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
            arrival_ns=arrival_ns,
            timeout=timeout,
            truncation=truncation,
        )
        for place, each in enumerate(inputs)
    ]
    return await vectors.compute(app.client, works)


def count_tokens(streams: list[VectorStream]) -> int:
    return sum(len(stream.work.prompt_ids) for stream in streams)
