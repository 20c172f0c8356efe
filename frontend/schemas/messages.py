"""POST /v1/messages: Anthropic's shapes.

Accepted and ignored, because they cannot change what is generated here: metadata, service_tier, cache_control, inference_geo, speed,
diagnostics and every name we do not know. Refused unless empty: what would run something elsewhere (container, mcp_servers, server tools).
"""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.schemas.numbers import Int
from frontend.schemas.refused import RefusedFields


class InputMessage(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[dict[str, Any]]


class MessagesRequest(RefusedFields, kw_only=True):
    """max_tokens is required for creating a message and means nothing for counting tokens. timeout, cache_salt, min_p, priority, seed,
    repetition_penalty, stop_regex and chat_template_kwargs are ours, as in chat completions."""

    messages: list[InputMessage]
    model: str | None = None
    max_tokens: Int = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stop_regex: str | list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int = None
    thinking: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None
    timeout: float | None = None
    cache_salt: str | None = None
    priority: Int = None
    seed: Int = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
