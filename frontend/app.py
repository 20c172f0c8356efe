"""Routes, and what every request goes through: an id, keys, limits, errors in one shape."""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http import HttpVersion10

from frontend import http_errors
from frontend.admission import Admission
from frontend.auth import ApiKeys, HostNames, Origins, read_key_file
from frontend.batch_runner import ENDPOINTS, BatchRunner
from frontend.batch_store import BatchStore
from frontend.behind_clients import TURNS
from frontend.connection import SERVER, HttpServer
from frontend.engine_client import EngineClient
from frontend.file_store import FileStore
from frontend.fill_in_the_middle import FillInTheMiddle
from frontend.handlers import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    messages,
    models,
    ollama,
    ollama_embeddings,
    operation,
    responses,
    tokenize,
)
from frontend.http_errors import Dialect, HttpError
from frontend.metrics import COUNTERS, Metrics
from frontend.peers import Peers
from frontend.response_store import Store
from frontend.state_dir import StateDir
from ipc.arena import Arena, Stat
from ipc.config import ChildSpec
from ipc.errors import InvalidRequestError, QuireError

Handler = Callable[["App", web.BaseRequest], Awaitable[web.StreamResponse]]
ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": operation.root},
    "/v1/completions": {"POST": completions.create},
    "/v1/chat/completions": {"POST": chat.create},
    "/v1/responses": {"POST": responses.create},
    "/v1/messages": {"POST": messages.create},
    "/v1/messages/count_tokens": {"POST": messages.count_tokens},
    "/v1/embeddings": {"POST": embeddings.create},
    "/v1/files": {"GET": files.list_files, "POST": files.create},
    "/v1/batches": {"GET": batches.list_batches, "POST": batches.create},
    "/v1/models": {"GET": models.list_models},
    "/api/chat": {"POST": ollama.chat},
    "/api/generate": {"POST": ollama.generate},
    "/api/embed": {"POST": ollama_embeddings.embed},
    "/api/embeddings": {"POST": ollama_embeddings.embed_one},
    "/api/tags": {"GET": ollama.tags},
    "/api/ps": {"GET": ollama.running},
    "/api/show": {"POST": ollama.show},
    "/api/version": {"GET": ollama.version},
    "/tokenize": {"POST": tokenize.tokenize},
    "/detokenize": {"POST": tokenize.detokenize},
    "/health": {"GET": operation.health},
    "/metrics": {"GET": operation.show_metrics},
    "/version": {"GET": operation.version},
    "/openapi.json": {"GET": operation.openapi},
}
# Paths that carry a name, in braces; a model's may have slashes.
NAMED_ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/models/{model}": {"GET": models.get_model},
    "/v1/responses/{response_id}": {"GET": responses.get, "DELETE": responses.delete},
    "/v1/responses/{response_id}/cancel": {"POST": responses.cancel},
    "/v1/responses/{response_id}/input_items": {"GET": responses.input_items},
    "/v1/files/{file_id}": {"GET": files.get, "DELETE": files.delete},
    "/v1/files/{file_id}/content": {"GET": files.content},
    "/v1/batches/{batch_id}": {"GET": batches.get},
    "/v1/batches/{batch_id}/cancel": {"POST": batches.cancel},
}
_NAMED = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path.replace("{model}", ".+"))), methods) for path, methods in NAMED_ROUTES.items()]
# Paths that ask for the engine's time.
GENERATING = frozenset(
    (
        "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
        "/api/chat", "/api/generate", "/api/embed", "/api/embeddings",
    )
)  # fmt: skip
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Max-Age": "86400",
}


class App:
    """One frontend's HTTP side: what handlers need, and the entry point of every request."""

    def __init__(self, spec: ChildSpec, arena: Arena, client: EngineClient, metrics: Metrics, version: str) -> None:
        """Raises ConfigError for a key file or a state directory that cannot be used."""
        self.spec, self.arena, self.client, self.metrics, self.version = spec, arena, client, metrics, version
        self.server_config = spec.config.server
        self.admission = Admission(spec, arena)
        self.middle = FillInTheMiddle(client.tokenizer)
        self.in_flight = 0
        self.on_idle: Callable[[], None] | None = None  # called when the last request in flight has ended
        self.stored = Store(self.server_config, spec.config.parallel.frontends)
        key_file = self.server_config.api_key_file
        self._keys = ApiKeys([*self.server_config.api_key, *(read_key_file(key_file) if key_file else [])])
        self._hosts = HostNames(self.server_config.host, self.server_config.allowed_host)
        self._origins = Origins(self._hosts, self.server_config.allowed_origin, self._keys.required)
        self._status = arena.status("frontend", spec.index)
        self.state = StateDir(self.server_config.state_dir, spec.model.name)
        self.files = FileStore(self.state, self.server_config.max_stored_file_bytes)
        self.batches = BatchStore(self.state)
        handlers = {path: ROUTES[path]["POST"] for path in ENDPOINTS if path in ROUTES}
        self.batch_endpoints = tuple(handlers)
        self.peers = Peers(spec)
        self.batch_runner = BatchRunner(self, self.state, self.files, self.batches, handlers)

    async def close(self) -> None:
        """Give back what outlives requests."""
        await self.batch_runner.close()
        await self.peers.close()
        self.state.close()

    @functools.cached_property
    def openapi_json(self) -> bytes:
        """What /openapi.json says."""
        from frontend import openapi  # builds schemas of all requests and answers; a start does without

        return openapi.document({**ROUTES, **NAMED_ROUTES}, self.version, self._keys.required)

    def make_server(self) -> HttpServer:
        """aiohttp's protocol factory, for the acceptor."""
        return HttpServer(self.handle, self.server_config, self._count_connections)

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
            self.release()
        status = f"{response.status // 100}xx"
        if status in COUNTERS["http_requests"][2]:
            self.metrics.count("http_requests", status)
        if not response.prepared:
            response.headers.update(self.response_headers(request))
        return response

    def hold(self) -> None:
        """Something runs that no client waits for: the process is not idle."""
        self.in_flight += 1

    def release(self) -> None:
        """A request, or what `hold` spoke of, has ended."""
        self.in_flight -= 1
        if self.in_flight == 0 and self.on_idle is not None:
            self.on_idle()

    def response_headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Headers of every response."""
        given = request.headers.get("X-Request-Id", "")
        return {
            "Server": SERVER,
            "X-Request-Id": given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12),
            **self._for_browsers(request.headers.get("Origin", "")),
        }

    def _for_browsers(self, origin: str) -> dict[str, str]:
        """Headers that let the page of this origin read the answer, if it may."""
        exposed = {"Access-Control-Expose-Headers": "X-Request-Id, Retry-After"}
        if self._origins.any:
            return {"Access-Control-Allow-Origin": "*", **exposed}
        if not origin or not self._origins.allow(origin):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **exposed}

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
        self.check_room(count)

    def check_room(self, count: int) -> None:
        """Raise unless the engine can take `count` more requests now, or one, where it is given one at a time."""
        try:
            self.admission.check(count if TURNS.get() is None else 1, self.client.ended)
        except QuireError:
            reason = "draining" if self.admission.draining else "queue_full"
            self.metrics.count("admission_rejections", reason)
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.version < HttpVersion10:
            raise HttpError(400, "HTTP/1.0 and 1.1 are spoken here", None, "http_version")
        if not self._hosts.allow(request.headers.get("Host", "")):
            raise HttpError(403, "this Host is not served here; --allowed-host adds names", None, "host_not_allowed")
        if not self._origins.allow(request.headers.get("Origin", "")):
            raise HttpError(403, "web pages of this origin may not ask here; --allowed-origin adds origins", None, "origin_not_allowed")
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=_PREFLIGHT)
        if not self._keys.allow(path, request.headers):
            raise HttpError(
                401, "a valid API key is needed: Authorization: Bearer <key>", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
        methods = ROUTES.get(path) or next((takes for pattern, takes in _NAMED if pattern.fullmatch(path)), None)
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
        response = web.Response(
            status=answer.status, body=answer.body(dialect_of(request)), content_type="application/json", headers=answer.headers
        )
        if answer.status in (408, 413, 417):
            response.force_close()
        return response

    def _count_connections(self, count: int) -> None:
        self._status[Stat.OPEN_CONNECTIONS] = count


def dialect_of(request: web.BaseRequest) -> Dialect:
    """Whose errors the client of this request understands."""
    return Dialect.ANTHROPIC if "anthropic-version" in request.headers else http_errors.dialect_of_path(request.path)
