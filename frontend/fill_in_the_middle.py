"""Prompts that ask a code model for what goes between a prefix and a suffix, in the tokens that its family was trained with."""

from __future__ import annotations

from dataclasses import dataclass

from frontend.http_errors import not_supported
from frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class MiddleFormat:
    """The names of a family's tokens. Mostly prefix, suffix, then the middle; ends: further tokens that end the middle.

    suffix_first: the suffix comes before the prefix, and the middle follows without a token of its own.
    """

    prefix: str
    suffix: str
    middle: str = ""
    ends: tuple[str, ...] = ()
    suffix_first: bool = False


FORMATS = (
    # Qwen2.5-Coder and CodeGemma
    MiddleFormat("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|endoftext|>", "<|file_sep|>", "<|file_separator|>")),
    # StarCoder, Granite Code
    MiddleFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),
    # SantaCoder
    MiddleFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),
    # DeepSeek-Coder: the hole is where the suffix begins
    MiddleFormat("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # CodeLlama
    MiddleFormat("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    # Codestral
    MiddleFormat("[PREFIX]", "[SUFFIX]", suffix_first=True),
)


class FillInTheMiddle:
    """Writes such prompts for one tokenizer. Raises HttpError 400 on use if its vocabulary has no tokens for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._format = next((each for each in FORMATS if self._has(each.prefix, each.suffix, each.middle)), None)

    @property
    def known(self) -> bool:
        """Whether the model can."""
        return self._format is not None

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end the middle, besides the model's own end of text."""
        found = [] if self._format is None else [self._id(name) for name in self._format.ends]
        return [token for token in found if token is not None]

    async def ids(self, prefix: str | list[int], suffix: str) -> list[int]:
        """The prompt between `prefix` and `suffix`."""
        form = self._format
        if form is None:
            raise not_supported("suffix needs a model with tokens for filling in the middle; this one's vocabulary has none", "suffix")
        before, _ = self._tokenizer.frame()
        start = [self._named(form.prefix), *(prefix if isinstance(prefix, list) else await self._encode(prefix))]
        end = [self._named(form.suffix), *await self._encode(suffix)]
        middle = [self._named(form.middle)] if form.middle else []
        return [*before, *(end + start if form.suffix_first else start + end), *middle]

    async def _encode(self, text: str) -> list[int]:
        return await self._tokenizer.encode_soon(text, add_special_tokens=False)

    def _named(self, name: str) -> int:
        token = self._id(name)
        assert token is not None
        return token

    def _has(self, *names: str) -> bool:
        return all(self._id(name) is not None for name in names if name)

    def _id(self, name: str) -> int | None:
        return self._tokenizer.backend.token_to_id(name)
