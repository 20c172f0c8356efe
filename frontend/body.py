"""Request bodies: read within bounds, decoded strictly, refused in words a client can use."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.http import HttpVersion11

from frontend.connection import Connection
from frontend.http_errors import HttpError, not_supported
from ipc.errors import InvalidRequestError

Shape = TypeVar("Shape", bound=msgspec.Struct)
_GUIDED = b'"guided_'
_PATH = re.compile(r" - at `\$\.?([A-Za-z_]\w*)?[^`]*`$")


def decoder(shape: type[Shape]) -> msgspec.json.Decoder[Shape]:
    """A strict JSON decoder: no text for numbers, no NaN, nothing after the document. Unknown members are skipped."""
    return msgspec.json.Decoder(shape)


async def read_json(request: web.BaseRequest, shape: msgspec.json.Decoder[Shape], limit: int, any_type: bool = False) -> Shape:
    """Decode the body, of at most `limit` bytes. any_type: take it for JSON whatever its Content-Type says.

    Raises HttpError 408, 413, 415, 417, or InvalidRequestError naming the member."""
    raw = await _read(request, limit, any_type)
    try:
        body = shape.decode(raw)
        if _GUIDED in raw:
            _refuse_guided(raw, body)
        return body
    except msgspec.ValidationError as error:
        raise misshapen(error) from None
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}", None, "invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequestError("the body is not valid UTF-8", None, "invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("the body is nested too deeply", None, "invalid_json") from None


def _refuse_guided(raw: bytes, body: msgspec.Struct) -> None:
    """Raise InvalidRequestError for a field that asks for structured output by a name that is not known: ignored, it would be missed."""
    for name, value in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items():
        if name.startswith("guided_") and name not in body.__struct_fields__ and bytes(value) not in (b"null", b"false"):
            raise not_supported(f"{name:.60} is not known here; structured_outputs takes json, regex, choice and grammar", name[:60])


def misshapen(error: msgspec.ValidationError) -> InvalidRequestError:
    """In words a client can use, naming the member."""
    message = str(error)
    path = _PATH.search(message)
    param = path.group(1) if path else None
    if param is None:
        missing = re.search(r"required field `(\w+)`", message)
        param = missing.group(1) if missing else None
    return InvalidRequestError(message.replace("`", "'"), param)


async def _read(request: web.BaseRequest, limit: int, any_type: bool) -> bytes:
    headers = request.headers
    kind = request.content_type
    if not any_type and "Content-Type" in headers and kind != "application/json" and not kind.endswith("+json"):
        raise HttpError(415, f"the body must be application/json, not {kind[:80]}", None, "unsupported_media_type")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    allow_body(request)
    body, connection = bytearray(), request.protocol
    assert isinstance(connection, Connection)
    seconds = connection.body_seconds
    try:
        async with asyncio.timeout(seconds):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {seconds:g} s") from None
    return bytes(body)


def allow_body(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to go ahead with the body. Raises HttpError 415, 417."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HttpError(415, "compressed request bodies are not accepted", None, "unsupported_encoding")
    expect = request.headers.get("Expect")
    if expect is not None:
        if expect.lower() != "100-continue":
            raise HttpError(417, "the only expectation that is understood is 100-continue")
        if request.version >= HttpVersion11 and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes", None, "body_too_large")
