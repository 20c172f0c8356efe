"""Errors as HTTP answers: the error object of the API that was asked, and nothing of our inside in it."""

from __future__ import annotations

import logging
import math
import re
from enum import Enum

import msgspec
from aiohttp import web

from ipc.errors import DeadlineError, EngineDeadError, InvalidRequestError, QueueFullError, RequestFailedError

log = logging.getLogger(__name__)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES = {**TYPES, 413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
MAX_MESSAGE = 2_000
RETRY_AFTER_503 = 5
_INSIDE = re.compile(r"0x[0-9a-fA-F]{6,}|(?<![\w/])/(?:[\w.+-]+/)+[\w.+-]*")


class Dialect(Enum):
    """Whose error object a client understands."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


def dialect_of_path(path: str) -> Dialect:
    """Whose API a path belongs to."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.OLLAMA if path.startswith("/api/") else Dialect.OPENAI


class HttpError(Exception):
    """An answer other than 2xx."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    def body(self, dialect: Dialect = Dialect.OPENAI) -> bytes:
        return error_body(self.status, self.message, self.param, self.code, dialect)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """The error object. Messages are bounded."""
    message = message[:MAX_MESSAGE]
    if dialect is Dialect.OLLAMA:
        return msgspec.json.encode({"error": message})
    if dialect is Dialect.ANTHROPIC:
        named = f"{param}: {message}" if param and param not in message else message
        return msgspec.json.encode({"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": named}})
    return msgspec.json.encode({"error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code}})


def not_supported(message: str, param: str) -> InvalidRequestError:
    """For what this version cannot honour: refused by name, never dropped in silence."""
    return InvalidRequestError(message, param, "not_supported")


def of(error: Exception) -> HttpError:
    """Any exception as an answer; one that nobody foresaw is logged, and its text stays here."""
    match error:
        case HttpError():
            return error
        case InvalidRequestError():
            return HttpError(400, error.message, error.param, error.code)
        case QueueFullError():
            return HttpError(429, str(error), None, "queue_full", {"Retry-After": str(max(1, math.ceil(error.retry_after)))})
        case EngineDeadError():
            return HttpError(503, _INSIDE.sub("...", str(error)), None, "engine_unavailable", {"Retry-After": str(RETRY_AFTER_503)})
        case DeadlineError():
            # Official clients try a 504 again unless they are told not to; the deadline was the client's own.
            return HttpError(504, str(error), "timeout", "deadline_exceeded", {"X-Should-Retry": "false"})
        case RequestFailedError():
            return HttpError(500, _INSIDE.sub("...", str(error)), None, "request_failed")
        case web.HTTPRequestEntityTooLarge():
            return HttpError(413, "the request body is too large", None, "body_too_large")
    log.error("unexpected error in a handler", exc_info=error)
    return HttpError(500, "internal error; the server's log has the details", None, "internal_error")
