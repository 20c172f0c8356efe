"""Errors that cross a process or a public interface. Each carries what a user needs to put it right."""

from __future__ import annotations


class QuireError(Exception):
    """Base of every error quire raises on purpose."""


class ConfigError(QuireError, ValueError):
    """A flag, environment variable, config key or model directory that quire cannot use; the message names it."""


class InvalidRequestError(QuireError, ValueError):
    """A request that can never be served as it stands (HTTP 400).

    `param` names the offending field, `code` is a stable machine-readable word.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class QueueFullError(QuireError):
    """The engine has as many waiting requests as it is allowed (HTTP 429); `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestFailedError(QuireError):
    """The engine accepted a request and could not finish it (HTTP 500); the rest of the engine goes on."""


class DeadlineError(QuireError):
    """The request did not end within the `timeout` that came with it (HTTP 504)."""


class EngineDeadError(QuireError):
    """The engine is not running (HTTP 503); the message says which process ended and why, where that is known."""


class ProtocolError(QuireError):
    """A peer process sent what the protocol does not allow; the frame was refused."""


class ChannelFullError(QuireError):
    """A peer does not read: its bounded outgoing queue is full, so nothing more can be promised to it."""


class IllegalTransitionError(QuireError):
    """A request was moved between two states that the status table does not connect: a bug of ours, never user input."""
