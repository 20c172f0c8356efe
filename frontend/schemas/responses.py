"""POST /v1/responses.

Accepted and ignored: user, service_tier, safety_identifier, prompt_cache_key, prompt_cache_retention, prompt_cache_options,
max_tool_calls (it counts tools that run at OpenAI), stream_options, text.verbosity, reasoning.summary, and every name we do not know.
"""

from __future__ import annotations

from typing import Any

from frontend.http_errors import not_supported
from frontend.schemas.numbers import Int
from frontend.schemas.refused import RefusedFields
from ipc.errors import InvalidRequestError

MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")  # the latter asks for nothing here: reasoning is not encrypted


class ResponsesRequest(RefusedFields, kw_only=True):
    """OpenAI's fields, and of ours those that chat completions have, too."""

    previous_input_messages: Any = None
    enable_response_messages: Any = None

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Int = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: Int = None
    prompt: Any = None
    conversation: Any = None
    context_management: Any = None
    top_k: Int = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    priority: Int = None
    cache_salt: str | None = None
    timeout: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    include_reasoning: bool | None = None
    structured_outputs: Any = None
    thinking_token_budget: Int = None
    min_tokens: Int = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's text comes with them."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def check(self) -> None:
        """Raise InvalidRequestError for what this version cannot honour."""
        self.refuse()
        for name in ("prompt", "conversation", "context_management", "previous_input_messages", "enable_response_messages"):
            if getattr(self, name):
                raise not_supported(f"{name} is not supported by this version of quire", name)
        if self.truncation not in (None, "disabled", "auto"):
            raise InvalidRequestError("truncation must be auto or disabled", "truncation")
        for name in self.include or []:
            if name not in _INCLUDABLE:
                raise not_supported(f"include: {name[:80]!r} is not supported", "include")
        if self.background and self.store is False:
            raise InvalidRequestError("background needs store: its answer would have nowhere to go", "background")
        metadata = self.metadata or {}
        if len(metadata) > MAX_METADATA or any(
            len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE for key, value in metadata.items()
        ):
            raise InvalidRequestError(
                f"metadata may have {MAX_METADATA} entries, keys of {MAX_METADATA_KEY} and values of {MAX_METADATA_VALUE} characters",
                "metadata",
            )
