"""Ollama's shapes: /api/chat, /api/generate, /api/embed, /api/embeddings, /api/show.

Accepted and ignored: keep_alive (checked, but the model stays loaded), options that concern Ollama's own runner (num_ctx, num_gpu,
use_mmap, ...), and every name we do not know. Refused unless they say nothing: images, template, mirostat, tfs_z, typical_p.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from frontend.schemas.numbers import Int
from ipc.errors import InvalidRequestError

# Go's durations, as Ollama reads them.
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def keep_alive_seconds(value: float | str | None) -> float | None:
    """How long the model is to stay loaded: seconds, or a text such as '5m' or '1h30m'; less than 0 is for ever, None is not said.

    Raises InvalidRequestError.
    """
    if not isinstance(value, str):
        return value
    sign, rest = (-1.0, value[1:]) if value[:1] == "-" else (1.0, value.removeprefix("+"))
    parts = _PART.findall(rest)
    if rest != "0" and (not parts or "".join(number + unit for number, unit in parts) != rest):
        raise InvalidRequestError(f"keep_alive must be seconds or a duration such as '5m' or '-1s', got {value!r:.40}", "keep_alive")
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)


class OllamaMessage(msgspec.Struct, kw_only=True):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Options(msgspec.Struct, kw_only=True):
    """What is left out comes from the model's generation_config.json. num_predict: -1 and -2 are the rest of the context."""

    num_predict: Int = None
    temperature: float | None = None
    top_k: Int = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int = None
    stop: str | list[str] | None = None
    mirostat: Int = None
    tfs_z: float | None = None
    typical_p: float | None = None


class OllamaRequest(msgspec.Struct, kw_only=True):
    """What chat and generate share. stream: on unless it says false. timeout: ours, in seconds."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Int = None
    timeout: float | None = None


class OllamaChatRequest(OllamaRequest, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
    """context: what an earlier answer gave: the tokens of the conversation so far."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None


class OllamaEmbedRequest(msgspec.Struct, kw_only=True):
    """truncate: on unless it says false; a text that is too long keeps its beginning. dimensions: 0 is all."""

    model: str
    input: str | list[Any] = ""
    truncate: bool | None = None
    dimensions: Int = None
    options: Options | None = None
    keep_alive: float | str | None = None
    timeout: float | None = None


class OllamaEmbedOneRequest(msgspec.Struct, kw_only=True):
    model: str
    prompt: str = ""
    options: Options | None = None
    keep_alive: float | str | None = None
    timeout: float | None = None


class ShowRequest(msgspec.Struct, kw_only=True):
    """name: what older clients call the model."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
