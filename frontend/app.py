"""Routes, and what every request goes through: an id, keys, limits, errors in one shape."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from frontend import http_errors
from frontend.admission import Admission
from frontend.auth import ApiKeys
from frontend.connection import HttpServer
from frontend.engine_client import EngineClient
from frontend.handlers import chat, completions, models, operation, tokenize
from frontend.http_errors import HttpError
from frontend.metrics import COUNTERS, Metrics
from ipc.arena import Arena, Stat
from ipc.config import ChildSpec
from ipc.errors import InvalidRequestError, QuireError

Handler = Callable[["App", web.BaseRequest], Awaitable[web.StreamResponse]]
ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/completions": {"POST": completions.create},
    "/v1/chat/completions": {"POST": chat.create},
    "/v1/models": {"GET": models.list_models},
    "/tokenize": {"POST": tokenize.tokenize},
    "/detokenize": {"POST": tokenize.detokenize},
    "/health": {"GET": operation.health},
    "/metrics": {"GET": operation.show_metrics},
    "/version": {"GET": operation.version},
}
GENERATING = frozenset({"/v1/completions", "/v1/chat/completions"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Max-Age": "86400",
}


class App:
    """One frontend's HTTP side: what handlers need, and the entry point of every request."""

    def __init__(self, spec: ChildSpec, arena: Arena, client: EngineClient, metrics: Metrics, version: str) -> None:
        self.spec, self.arena, self.client, self.metrics, self.version = spec, arena, client, metrics, version
        self.server_config = spec.config.server
        self.admission = Admission(spec, arena)
        self.in_flight = 0
        self.on_idle: Callable[[], None] | None = None  # called when the last request in flight has ended
        self._keys = ApiKeys(spec.config.server.api_key)
        self._status = arena.status("frontend", spec.index)

    def make_server(self) -> HttpServer:
        """aiohttp's protocol factory for `loop.create_server`."""
        return HttpServer(self.handle, self.server_config.max_connections, self._count_connections)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens."""
        self.in_flight += 1
        try:
            response = await self._answer(request)
        except ConnectionError:
            self.metrics.count("client_disconnects")
            raise
        except asyncio.CancelledError:
            if request.transport is None:
                self.metrics.count("client_disconnects")
            raise
        except Exception as error:
            response = self._error(request, error)
        finally:
            self.in_flight -= 1
            if self.in_flight == 0 and self.on_idle is not None:
                self.on_idle()
        status = f"{response.status // 100}xx"
        if status in COUNTERS["http_requests"][2]:
            self.metrics.count("http_requests", status)
        if not response.prepared:
            response.headers.update(self.response_headers(request))
        return response

    def response_headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Headers of every response."""
        given = request.headers.get("X-Request-Id", "")
        return {
            "X-Request-Id": given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12),
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
        }

    def check_model(self, name: str | None, required: bool = False) -> None:
        """Raise HttpError 404 unless `name` is the served model; a request that names none means that one."""
        if name != self.spec.model.name and (name or required):
            raise HttpError(
                404, f"the model {name!r:.120} does not exist; this server has {self.spec.model.name!r}", "model", "model_not_found"
            )

    def check_count(self, count: int) -> None:
        """Raise unless `count` completions can be taken in one request, now."""
        limit = 4 * self.server_config.max_prompts_per_request
        if count > limit:
            raise InvalidRequestError(f"prompts times n may be at most {limit}, got {count}", "n")
        try:
            self.admission.check(count, self.client.ended)
        except QuireError:
            reason = "draining" if self.admission.draining else "queue_full"
            self.metrics.count("admission_rejections", reason)
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=_PREFLIGHT)
        if not self._keys.allow(path, request.headers):
            raise HttpError(
                401, "a valid API key is needed: Authorization: Bearer <key>", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
        methods = ROUTES.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": models.get_model}
        if methods is None:
            raise HttpError(404, f"there is nothing at {path[:200]}", None, "not_found")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise HttpError(
                405,
                f"{path} takes {', '.join(methods)}, not {request.method[:20]}",
                None,
                "method_not_allowed",
                {"Allow": ", ".join([*methods, "OPTIONS"])},
            )
        if self.admission.draining and path in GENERATING:
            self.admission.check(0, self.client.ended)
        return await handler(self, request)

    def _error(self, request: web.BaseRequest, error: Exception) -> web.Response:
        answer = http_errors.of(error)
        response = web.Response(status=answer.status, body=answer.body(), content_type="application/json", headers=answer.headers)
        if answer.status in (408, 413, 417):
            response.force_close()
        return response

    def _count_connections(self, count: int) -> None:
        self._status[Stat.OPEN_CONNECTIONS] = count
