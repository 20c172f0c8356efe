"""What a tokenizer for grammars is made from; apart, so that the scheduler's loop need not import llguidance to say it."""

from __future__ import annotations

import msgspec


class TokenizerFacts(msgspec.Struct, frozen=True):
    """file: tokenizer.json. vocab_size is the model's, which may be larger than the tokenizer's."""

    file: str
    vocab_size: int
    eos_token_ids: list[int]
