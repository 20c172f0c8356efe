"""POST /v1/embeddings: OpenAI's fields and vLLM's.

Accepted and ignored: user, and every name we do not know. Refused unless they say nothing: padding, mm_processor_kwargs, a request's own
chat_template.
"""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.http_errors import not_supported
from frontend.preparation import Truncation
from frontend.schemas.chat import ChatMessage, ChatRequest
from frontend.schemas.generation import check_place, truncation_of
from frontend.schemas.numbers import Int, integer
from frontend.schemas.prompts import prompts_of
from frontend.vector_bytes import DTYPES, ENDIANNESS
from ipc.errors import InvalidRequestError

BYTE_FORMATS = ("bytes", "bytes_only")
FORMATS = ("float", "base64", *BYTE_FORMATS)
REFUSED: dict[str, tuple[Any, ...]] = {
    "padding": (False,),
    "mm_processor_kwargs": ({},),
    "chat_template": (),
}


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """input: a text, texts, token ids, or lists of token ids; or messages, a conversation of which the chat template makes the text.

    add_generation_prompt (false unless said), continue_final_message, chat_template_kwargs: of the template. use_activation: vLLM's newer
    name of normalize. embed_dtype, endianness: of all formats but float. timeout: ours, in seconds.
    """

    input: str | list[Any] | None = None
    messages: list[ChatMessage] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    dimensions: Int = None
    encoding_format: str | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Int = None
    truncation_side: str | None = None
    add_special_tokens: bool | None = None
    priority: Int = None
    cache_salt: str | None = None
    request_id: str | None = None
    timeout: float | None = None
    embed_dtype: str | None = None
    endianness: str | None = None
    chat_template: Any = None
    padding: Any = None
    mm_processor_kwargs: Any = None

    def check(self, policy: str) -> None:
        """Raise InvalidRequestError for what this version cannot honour."""
        for name, harmless in REFUSED.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                raise not_supported(f"{name} is not supported by this version of quire", name)
        if self.encoding_format not in (None, *FORMATS):
            raise InvalidRequestError(
                f"encoding_format must be one of {', '.join(FORMATS)}, got {self.encoding_format!r:.40}", "encoding_format"
            )
        for name, known in (("embed_dtype", DTYPES), ("endianness", ENDIANNESS)):
            if getattr(self, name) not in (None, *known):
                raise InvalidRequestError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r:.40}", name)
        if self.input is None and not self.messages:
            raise InvalidRequestError("input is required, or messages", "input")
        if self.input is not None and self.messages:
            raise InvalidRequestError("give either input or messages", "messages")
        if self.normalize is not None and self.use_activation is not None and self.normalize != self.use_activation:
            raise InvalidRequestError("normalize and use_activation contradict each other", "normalize")
        check_place(self, policy)

    @property
    def as_bytes(self) -> bool:
        """Whether the answer is no JSON but the vectors' bytes."""
        return self.encoding_format in BYTE_FORMATS

    @property
    def normalized(self) -> bool:
        return self.normalize is not False and self.use_activation is not False

    @property
    def length(self) -> int | None:
        return integer("dimensions", self.dimensions)

    def prompts(self, limit: int) -> list[str | list[int]]:
        """One entry per input. Raises InvalidRequestError for mixed, empty or too many inputs."""
        return prompts_of("input", [] if self.input is None else self.input, limit)

    def conversation(self) -> ChatRequest:
        """The messages, as a chat that nothing is answered to. Raises InvalidRequestError."""
        chat = ChatRequest(
            messages=self.messages or [],
            add_generation_prompt=bool(self.add_generation_prompt),
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
            add_special_tokens=self.add_special_tokens,
        )
        chat.check_chat()
        return chat

    def truncation(self) -> Truncation | None:
        """How to shorten each input. Raises InvalidRequestError."""
        return truncation_of(self)
