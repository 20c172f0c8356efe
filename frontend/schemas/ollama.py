"""Ollama's shapes: /api/chat, /api/generate, /api/embed, /api/embeddings, /api/show.

Accepted and ignored: keep_alive (the model stays loaded), options that concern Ollama's own runner (num_ctx, num_gpu, use_mmap,
...), and every name we do not know. Refused unless they say nothing: images, template, context, mirostat, tfs_z, typical_p.
"""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.schemas.numbers import Int


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
    keep_alive: Any = None
    logprobs: bool | None = None
    top_logprobs: Int = None
    timeout: float | None = None


class OllamaChatRequest(OllamaRequest, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
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
    keep_alive: Any = None
    timeout: float | None = None


class OllamaEmbedOneRequest(msgspec.Struct, kw_only=True):
    model: str
    prompt: str = ""
    options: Options | None = None
    keep_alive: Any = None
    timeout: float | None = None


class ShowRequest(msgspec.Struct, kw_only=True):
    """name: what older clients call the model."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
