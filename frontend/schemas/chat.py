"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.http_errors import not_supported
from frontend.schemas.generation import GenerationRequest
from frontend.schemas.numbers import Int
from frontend.tools import Tools, read_tools
from ipc.errors import InvalidRequestError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_KWARGS = 32
MAX_CALLS = 256


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
        other = self.tool_calls or self.function_call or self.refusal or self.reasoning_content or self.reasoning
        if self.content is None and not (self.role == "assistant" and other):
            raise InvalidRequestError(f"{at}: a message of role {self.role} needs content", "messages")
        self._check_calls(at)
        if isinstance(self.content, list):
            for part in self.content:
                kind = part.get("type")
                if kind not in ("text", "refusal", "input_text"):
                    raise not_supported(f"{at}: content of type {kind!r:.40} is not supported; this model reads text only", "messages")
                if not isinstance(part.get("text" if kind != "refusal" else "refusal"), str):
                    raise InvalidRequestError(f"{at}: a content part of type {kind} needs its text", "messages")

    def _check_calls(self, at: str) -> None:
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequestError(f"{at}: only the assistant has tool_calls", "messages")
        if len(self.tool_calls or ()) > MAX_CALLS:
            raise InvalidRequestError(f"{at}: tool_calls may have at most {MAX_CALLS} entries", "messages")
        for call in self.tool_calls or ():
            function = call.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise InvalidRequestError(f"{at}: a tool call needs a function with a name", "messages")
            if not isinstance(function.get("arguments", "{}"), (str, dict)):
                raise InvalidRequestError(f"{at}: a tool call's arguments are JSON text of an object", "messages")

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "\n".join(str(part.get("text", part.get("refusal", ""))) for part in self.content)
        return self.content or ""

    def plain(self) -> dict[str, Any]:
        """The message as templates see it: only the members that were given."""
        members = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not None}
        if isinstance(self.content, list):
            members["content"] = [{"type": "text", "text": part.get("text", part.get("refusal"))} for part in self.content]
        if self.reasoning is not None:
            members.setdefault("reasoning_content", self.reasoning)
        return members | {"content": members.get("content", "")}


class ChatRequest(GenerationRequest, kw_only=True):
    """messages, what may follow them, and OpenAI's and vLLM's further fields."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: Int = None
    max_completion_tokens: Int = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    audio: Any = None
    modalities: list[str] | None = None
    best_of: Int = None
    web_search_options: Any = None

    def read_tools(self) -> Tools:
        """The tools and who may be called. Raises InvalidRequestError."""
        return read_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    def check_chat(self) -> None:
        """Raise InvalidRequestError for messages that make no sense and for what this version cannot honour."""
        if not self.messages:
            raise InvalidRequestError("messages must not be empty", "messages")
        for place, message in enumerate(self.messages):
            message.check(place)
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            raise InvalidRequestError(f"reasoning_effort must be one of {', '.join(EFFORTS)}", "reasoning_effort")
        for name in ("functions", "function_call", "chat_template", "audio", "web_search_options"):
            if getattr(self, name) not in (None, [], "none"):
                raise not_supported(f"{name} is not supported by this version of quire", name)
        if self.best_of not in (None, 1):
            raise not_supported("best_of is a field of /v1/completions", "best_of")
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
