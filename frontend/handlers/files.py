"""/v1/files: upload, list, read, delete."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from frontend.body import allow_body
from frontend.file_store import OUTPUT, PURPOSES
from frontend.generation import json_answer
from frontend.http_errors import HttpError
from frontend.schemas.batches import ExpiresAfter
from ipc.errors import InvalidRequestError, QuireError

if TYPE_CHECKING:
    from frontend.app import App

MAX_PAGE = 10_000
MAX_FIELD_BYTES = 1024
_CHUNK = 256 * 1024
# An upload may take as long as it needs at this rate, besides what any body may take.
_MIN_BYTES_PER_SECOND = 16 * 1024
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


async def create(app: App, request: web.BaseRequest) -> web.Response:
    """Raises InvalidRequestError, HttpError 408, 413, 415."""
    fields: dict[str, str] = {}
    filename: str | None = None
    if request.content_type != "multipart/form-data":
        raise HttpError(415, "an upload must be multipart/form-data with the fields file and purpose", None, "unsupported_media_type")
    limit = app.server_config.max_file_bytes
    if (request.content_length or 0) > limit + 64 * 1024:
        raise _too_large(limit)
    allow_body(request)
    identity, path = await app.files.begin()
    try:
        with await asyncio.to_thread(open, path, "wb") as file:
            reader = await request.multipart()
            upload = _Upload(file, limit, app.server_config.body_timeout)
            while (part := await upload.in_time(reader.next())) is not None:
                if not isinstance(part, BodyPartReader):
                    raise InvalidRequestError("multipart inside of multipart is not understood")
                if part.name == "file" and filename is None:
                    filename = part.filename or "upload"
                    await upload.take(part)
                elif part.name in _FIELDS and part.name not in fields:
                    fields[part.name] = await upload.field(part)
                else:
                    raise InvalidRequestError(f"the form has a field that is not known, or twice: {part.name or ''!r:.80}", "file")
        return json_answer(await app.files.keep(identity, _name(filename), *_checked(fields)))
    except QuireError:
        raise
    except (ValueError, LookupError, AssertionError, HttpProcessingError) as error:
        # What aiohttp raises for a form that is not one; its words speak of its own inside.
        raise InvalidRequestError("the form is not valid multipart/form-data", "file", "invalid_form") from error
    finally:
        app.files.abandon(identity)


class _Upload:
    """Takes a form's parts, within the limits."""

    def __init__(self, file: BinaryIO, limit: int, seconds: float) -> None:
        """seconds: what a small upload may take."""
        self._file, self._limit, self._seconds, self._size, self._begun = file, limit, seconds, 0, time.monotonic()

    async def in_time(self, awaitable: Any) -> Any:
        """Raises HttpError 408 when the client is too slow."""
        allowed = self._seconds + self._size / _MIN_BYTES_PER_SECOND - (time.monotonic() - self._begun)
        try:
            return await asyncio.wait_for(awaitable, max(0.0, allowed))
        except TimeoutError:
            raise HttpError(408, "the upload is too slow", "file") from None

    async def take(self, part: BodyPartReader) -> None:
        while chunk := await self.in_time(part.read_chunk(_CHUNK)):
            self._size += len(chunk)
            if self._size > self._limit:
                raise _too_large(self._limit)
            await asyncio.to_thread(self._file.write, chunk)

    async def field(self, part: BodyPartReader) -> str:
        value = b""
        while chunk := await self.in_time(part.read_chunk(_CHUNK)):
            value += chunk
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidRequestError(f"{part.name} is too long", part.name)
        return value.decode()


def _checked(fields: dict[str, str]) -> tuple[str, int | None]:
    """Purpose, and seconds until it expires."""
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequestError(f"purpose must be one of {', '.join(PURPOSES)}", "purpose")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return purpose, None
    if seconds is None or not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise InvalidRequestError("expires_after needs seconds, an integer", "expires_after")
    return purpose, ExpiresAfter(anchor=anchor or "", seconds=int(seconds)).check("expires_after")


def _name(filename: str | None) -> str:
    if filename is None:
        raise InvalidRequestError("the form has no file", "file")
    return re.sub(r"[\x00-\x1f\x7f]", "", filename.replace("\\", "/").rpartition("/")[2]) or "upload"


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"a file may have at most {limit} bytes", "file", "body_too_large")


async def list_files(app: App, request: web.BaseRequest) -> web.Response:
    """The newest first, unless order=asc."""
    query = request.rel_url.query
    purpose = query.get("purpose")
    if purpose is not None and purpose not in (*PURPOSES, OUTPUT):
        raise InvalidRequestError(f"purpose must be one of {', '.join((*PURPOSES, OUTPUT))}", "purpose")
    found, more = await app.files.page(purpose, query.get("after"), page_limit(request, MAX_PAGE, MAX_PAGE), ascending(request))
    return json_answer(page(found, more))


async def get(app: App, request: web.BaseRequest) -> web.Response:
    return json_answer(await app.files.get(_identity(request)))


async def content(app: App, request: web.BaseRequest) -> web.StreamResponse:
    """The bytes, as they were uploaded."""
    identity = _identity(request)
    await app.files.get(identity)
    headers = {"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff", **app.response_headers(request)}
    return web.FileResponse(app.files.content_path(identity), headers=headers)


async def delete(app: App, request: web.BaseRequest) -> web.Response:
    identity = _identity(request)
    await app.files.delete(identity)
    return json_answer({"id": identity, "object": "file", "deleted": True})


def _identity(request: web.BaseRequest) -> str:
    return request.path.split("/")[3]


def page(found: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """OpenAI's list object."""
    ends = {"first_id": found[0]["id"] if found else None, "last_id": found[-1]["id"] if found else None}
    return {"object": "list", "data": found, **ends, "has_more": more}


def page_limit(request: web.BaseRequest, default: int, most: int) -> int:
    """The query's limit. Raises InvalidRequestError."""
    limit = request.rel_url.query.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:7]) <= most):
        raise InvalidRequestError(f"limit must be an integer from 1 to {most}", "limit")
    return int(limit)


def ascending(request: web.BaseRequest) -> bool:
    """The query's order. Raises InvalidRequestError."""
    order = request.rel_url.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc", "order")
    return order == "asc"
