"""What the routes answer, for /openapi.json and for the tests that hold the answers to it. Handlers build their documents themselves.

Members that clients count on; an answer may have more.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Answer(msgspec.Struct, kw_only=True):
    pass


class OpenAIErrorBody(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(_Answer):
    error: OpenAIErrorBody


class AnthropicErrorBody(_Answer):
    type: str
    message: str


class AnthropicError(_Answer):
    type: Literal["error"]
    error: AnthropicErrorBody


class OllamaError(_Answer):
    error: str


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int | None] | None = None
    completion_tokens_details: dict[str, int | None] | None = None


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class Completion(_Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class FunctionCall(_Answer):
    name: str
    arguments: str


class ToolCall(_Answer):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatAnswerMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Answer):
    index: int
    message: ChatAnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class EmbeddingUsage(_Answer):
    prompt_tokens: int
    total_tokens: int


class Embedding(_Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(_Answer):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class OllamaEmbed(_Answer):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedOne(_Answer):
    embedding: list[float]


class Response(_Answer):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    metadata: dict[str, str]
    usage: dict[str, Any] | None


class ItemList(_Answer):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Message(_Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(_Answer):
    input_tokens: int


class Model(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(_Answer):
    object: Literal["list"]
    data: list[Model]


class AnthropicModel(_Answer):
    id: str
    type: Literal["model"]
    display_name: str
    created_at: str


class AnthropicModelList(_Answer):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(_Answer):
    id: str
    object: str
    deleted: bool


class File(_Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


class FileList(_Answer):
    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RequestCounts(_Answer):
    total: int
    completed: int
    failed: int


class Batch(_Answer):
    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
    created_at: int
    request_counts: RequestCounts
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Any] | None
    metadata: dict[str, str] | None
    expires_at: int | None
    completed_at: int | None


class BatchList(_Answer):
    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OllamaChat(_Answer):
    """Each line of a stream; without stream, the one answer."""

    model: str
    created_at: str
    message: dict[str, Any]
    done: bool
    done_reason: str | None = None


class OllamaGenerate(_Answer):
    """Each line of a stream; without stream, the one answer."""

    model: str
    created_at: str
    response: str
    done: bool
    done_reason: str | None = None
    context: list[int] | None = None


class OllamaModels(_Answer):
    models: list[dict[str, Any]]


class OllamaModel(_Answer):
    template: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]


class Version(_Answer):
    version: str


class Tokens(_Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Answer):
    prompt: str


class Health(_Answer):
    status: str
    running: int
    waiting: int
    steps: int
    kv_blocks_used: int
    kv_blocks_total: int
