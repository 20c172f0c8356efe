"""Errors name fields as the client wrote them, though all APIs that chat become one request, whose names are chat completions'."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from ipc.errors import InvalidRequestError

Answer = TypeVar("Answer")
App = TypeVar("App")
Request = TypeVar("Request")
Handler = Callable[[App, Request], Awaitable[Answer]]


def renamed(error: InvalidRequestError, names: Mapping[str, str]) -> InvalidRequestError:
    """The same error about the field of the client's own name. names: ours to theirs."""
    ours = error.param or ""
    theirs = names.get(ours)
    if theirs is None:
        return error
    return InvalidRequestError(re.sub(rf"\b{re.escape(ours)}\b", theirs, error.message), theirs, error.code)


def in_terms_of(names: Mapping[str, str]) -> Callable[[Handler[App, Request, Answer]], Handler[App, Request, Answer]]:
    """A handler whose errors are about fields by their names in its API. names: ours to theirs."""

    def wrap(handler: Handler[App, Request, Answer]) -> Handler[App, Request, Answer]:
        @functools.wraps(handler)
        async def handle(app: App, request: Request) -> Answer:
            try:
                return await handler(app, request)
            except InvalidRequestError as error:
                raise renamed(error, names) from None

        return handle

    return wrap
