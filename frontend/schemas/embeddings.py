"""POST /v1/embeddings: OpenAI's fields and vLLM's.

Accepted and ignored: user, and every name we do not know. Refused unless they say nothing: messages (write the text out), embed_dtype,
endianness, padding, mm_processor_kwargs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.http_errors import not_supported
from frontend.preparation import Truncation
from frontend.schemas.generation import check_place, truncation_of
from frontend.schemas.numbers import Int, integer
from frontend.schemas.prompts import prompts_of
from ipc.errors import InvalidRequestError

FORMATS = ("float", "base64")
REFUSED: dict[str, tuple[Any, ...]] = {
    "messages": ([],),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "padding": (False,),
    "mm_processor_kwargs": ({},),
}


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """input: a text, texts, token ids, or lists of token ids. use_activation: vLLM's newer name of normalize. timeout: ours, in seconds."""

    input: str | list[Any]
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
    messages: Any = None
    embed_dtype: Any = None
    endianness: Any = None
    padding: Any = None
    mm_processor_kwargs: Any = None

    def check(self, policy: str) -> None:
        """Raise InvalidRequestError for what this version cannot honour."""
        for name, harmless in REFUSED.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                raise not_supported(f"{name} is not supported by this version of quire", name)
        if self.encoding_format not in (None, *FORMATS):
            raise InvalidRequestError(f"encoding_format must be float or base64, got {self.encoding_format!r:.40}", "encoding_format")
        if self.normalize is not None and self.use_activation is not None and self.normalize != self.use_activation:
            raise InvalidRequestError("normalize and use_activation contradict each other", "normalize")
        check_place(self, policy)

    @property
    def normalized(self) -> bool:
        return self.normalize is not False and self.use_activation is not False

    @property
    def length(self) -> int | None:
        return integer("dimensions", self.dimensions)

    def prompts(self, limit: int) -> list[str | list[int]]:
        """One entry per input. Raises InvalidRequestError for mixed, empty or too many inputs."""
        return prompts_of("input", self.input, limit)

    def truncation(self) -> Truncation | None:
        """How to shorten each input. Raises InvalidRequestError."""
        return truncation_of(self)
