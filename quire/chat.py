"""`quire chat`: a conversation in the terminal, with a server over HTTP or with an engine started for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from ipc.errors import ConfigError, QuireError, RequestFailedError
from ipc.sampling_params import SamplingParams

Messages = list[dict[str, str]]
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """What the user chose for every answer; None leaves it to the model."""

    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None


class Backend(Protocol):
    """Who answers."""

    def reply(self, messages: Messages, settings: Settings) -> Iterator[str]:
        """The answer in pieces, as they come. Raises QuireError."""

    def close(self) -> None:
        """Let go of whatever answers."""


def talk(backend: Backend, settings: Settings) -> int:
    """Read lines from stdin and print the answers until end of input or /exit; returns the exit code.

    Ctrl-C during an answer stops that answer; at the prompt it ends the conversation.
    """
    messages: Messages = [{"role": "system", "content": settings.system}] if settings.system else []
    if sys.stdin.isatty():
        print("Type a message; /new begins again, /exit or Ctrl-D ends.", file=sys.stderr)
    try:
        while (line := _read()) is not None:
            if line in ("/exit", "/quit"):
                break
            if line == "/new":
                del messages[bool(settings.system) :]
            elif line:
                _turn(backend, settings, messages, line)
        return 0
    except KeyboardInterrupt:
        print()
        return 0
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        backend.close()


def _turn(backend: Backend, settings: Settings, messages: Messages, line: str) -> None:
    messages.append({"role": "user", "content": line})
    said = ""
    try:
        for piece in backend.reply(messages, settings):
            said += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    messages.append({"role": "assistant", "content": said})


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


class HttpBackend:
    """A server that speaks the chat completions API. Raises ConfigError for an address it cannot use."""

    def __init__(self, url: str, api_key: str, model: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url {url}: expected an address such as http://127.0.0.1:8000")
        self._url, self._model = url, model
        self._parts, self._path = parts, parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    def reply(self, messages: Messages, settings: Settings) -> Iterator[str]:
        """See Backend."""
        body: dict[str, Any] = {"messages": messages, "stream": True}
        optional = {"model": self._model or None, "max_tokens": settings.max_tokens, "temperature": settings.temperature}
        body |= {key: value for key, value in optional.items() if value is not None}
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(None)  # the first token of a long queue may take its time
            connection.request("POST", f"{self._path}/v1/chat/completions", json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise RequestFailedError(f"{self._url} answered {response.status}: {_error_text(response.read(65536))}")
            yield from _pieces(response)
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailedError(f"cannot talk to {self._url}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            connection.close()

    def close(self) -> None:
        """Nothing is kept between answers."""


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    """The text in a stream of server-sent events."""
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data:
            continue
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise RequestFailedError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                yield text


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()[:500]


class EngineBackend:
    """An engine of its own. settings: by field name. Raises ConfigError, EngineDeadError."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from quire.async_llm import AsyncLLM

        self._runner = asyncio.Runner()
        self._engine = self._runner.run(AsyncLLM.start(**settings))

    def reply(self, messages: Messages, settings: Settings) -> Iterator[str]:
        """See Backend."""
        from quire.prompts import default_params

        outputs = self._engine.chat(messages, self._params(settings, default_params(self._engine.model)), delta=True)
        try:
            while (piece := self._runner.run(_next(outputs))) is not None:
                yield piece
        finally:
            self._runner.run(outputs.aclose())

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.close())
        self._runner.close()

    def _params(self, settings: Settings, advice: SamplingParams) -> SamplingParams:
        from msgspec.structs import replace

        temperature = advice.temperature if settings.temperature is None else settings.temperature
        return replace(advice, max_tokens=settings.max_tokens, temperature=temperature)


async def _next(outputs: AsyncGenerator[Any, None]) -> str | None:
    async for output in outputs:
        return "".join(each.message.content or "" for each in output.outputs)
    return None
