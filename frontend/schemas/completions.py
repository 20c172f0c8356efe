"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from frontend.schemas.generation import GenerationRequest
from frontend.schemas.numbers import Int, integer
from frontend.schemas.prompts import prompts_of
from ipc.errors import InvalidRequestError


class CompletionRequest(GenerationRequest, kw_only=True):
    """prompt: a text, texts, token ids, or lists of token ids. logprobs: alternatives per token."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: Int = None
    suffix: str | None = None
    best_of: Int = None

    def pool(self) -> int:
        """How many completions to make of each prompt, of which the best n are shown. Raises InvalidRequestError."""
        count, best_of = self.count, integer("best_of", self.best_of)
        if best_of is None or best_of == count:
            return count
        if best_of < count:
            raise InvalidRequestError(f"best_of ({best_of}) must not be less than n ({count})", "best_of")
        if self.stream:
            raise InvalidRequestError("with best_of greater than n nothing can be streamed: the best is known at the end", "best_of")
        if self.use_beam_search:
            raise InvalidRequestError("best_of cannot be combined with beam search", "best_of")
        return best_of

    def prompts(self, limit: int) -> list[str | list[int]]:
        """One entry per prompt. Raises InvalidRequestError for mixed, empty or too many prompts."""
        return prompts_of("prompt", self.prompt, limit)
