"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.http_errors import not_supported
from frontend.schemas.generation import GenerationRequest
from frontend.schemas.numbers import Int
from ipc.errors import InvalidRequestError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_KWARGS = 32


class ChatMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None

    def check(self, place: int) -> None:
        """Raise InvalidRequestError naming the message."""
        at = f"messages[{place}]"
        if self.role not in ROLES:
            raise InvalidRequestError(f"{at}: unknown role {self.role!r:.40}; roles are {', '.join(ROLES)}", "messages")
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.function_call or self.refusal)):
            raise InvalidRequestError(f"{at}: a message of role {self.role} needs content", "messages")
        if isinstance(self.content, list):
            for part in self.content:
                kind = part.get("type")
                if kind not in ("text", "refusal", "input_text"):
                    raise not_supported(f"{at}: content of type {kind!r:.40} is not supported; this model reads text only", "messages")
                if not isinstance(part.get("text" if kind != "refusal" else "refusal"), str):
                    raise InvalidRequestError(f"{at}: a content part of type {kind} needs its text", "messages")

    def plain(self) -> dict[str, Any]:
        """The message as templates see it: only the members that were given."""
        members = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not None}
        if isinstance(self.content, list):
            members["content"] = [{"type": "text", "text": part.get("text", part.get("refusal"))} for part in self.content]
        return members | {"content": members.get("content", "")}


class ChatRequest(GenerationRequest, kw_only=True):
    """messages, what may follow them, and OpenAI's and vLLM's further fields."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: Int = None
    max_completion_tokens: Int = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Any = None
    reasoning_effort: str | None = None
    audio: Any = None
    modalities: list[str] | None = None
    prediction: Any = None
    web_search_options: Any = None

    def check_chat(self) -> None:
        """Raise InvalidRequestError for messages that make no sense and for what this version cannot honour."""
        if not self.messages:
            raise InvalidRequestError("messages must not be empty", "messages")
        for place, message in enumerate(self.messages):
            message.check(place)
        if self.tools is not None and not self.tools:
            raise InvalidRequestError("tools must not be an empty list", "tools")
        if self.tools and self.tool_choice != "none":
            raise not_supported(
                "tools are not supported by this version of quire: it would not parse the calls; send tool_choice 'none' to "
                "have them ignored",
                "tools",
            )
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice needs tools", "tool_choice")
        for name in ("functions", "function_call", "chat_template", "documents", "audio", "prediction", "web_search_options"):
            if getattr(self, name) not in (None, [], "none"):
                raise not_supported(f"{name} is not supported by this version of quire", name)
        if self.echo:
            raise not_supported("echo is not supported in chat", "echo")
        if self.modalities not in (None, [], ["text"]):
            raise not_supported("modalities other than text are not supported", "modalities")
        if self.top_logprobs is not None and self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        for name, value in (self.chat_template_kwargs or {}).items():
            if name in _RESERVED or not name.isidentifier() or not (value is None or isinstance(value, (str, int, float, bool))):
                raise InvalidRequestError(
                    "chat_template_kwargs takes names the server does not set itself, with plain values", "chat_template_kwargs"
                )
        if len(self.chat_template_kwargs or {}) > MAX_KWARGS:
            raise InvalidRequestError(f"chat_template_kwargs may have at most {MAX_KWARGS} entries", "chat_template_kwargs")


_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "chat_template",
        "self",
        "documents",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "range",
        "dict",
        "namespace",
        "raise_exception",
        "strftime_now",
    }
)
