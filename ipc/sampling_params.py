"""How one request's tokens are chosen and when it ends: names and ranges as OpenAI and vLLM have them.

The same struct serves the Python API, the HTTP handlers and the wire to the scheduler, so a field exists once.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

from ipc.errors import InvalidRequestError
from ipc.grammar import StructuredOutputsParams

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_REGEX = 8
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 1024
MAX_PATTERN = 256
MAX_PATTERN_COUNT = 1024
INT64 = 2**63
GREEDY_BELOW = 1e-5
# Fields of SamplingParams by what they hold.
_PATTERNS = ("stop", "stop_regex")
_LISTS = ("stop", "stop_regex", "stop_token_ids", "bad_words")
_SWITCHES = (
    "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize", "skip_reading_prefix_cache",
    "spaces_between_special_tokens",
)  # fmt: skip


class RequestOutputKind(enum.IntEnum):
    """What each output of a stream holds: all so far, what is new, or (once, at the end) everything."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class ThinkingLimit(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """At most `budget` tokens of an output between the tokens `begin` and `end`; then `end` is next. opened: the prompt ends in between."""

    budget: int
    begin: int
    end: int
    opened: bool = False


class RepetitionDetectionParams(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True, omit_defaults=True):
    """Ends an output whose last tokens are one pattern of min_pattern_size to max_pattern_size tokens, min_count times in a row."""

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def validate(self) -> None:
        """Raise InvalidRequestError for sizes that make no pattern."""
        name = "repetition_detection"
        _integer(name, self.max_pattern_size, 1, MAX_PATTERN)
        _integer(name, self.min_pattern_size, 1, MAX_PATTERN)
        _integer(name, self.min_count, 2, MAX_PATTERN_COUNT)
        if self.min_pattern_size > self.max_pattern_size:
            raise InvalidRequestError("repetition_detection: min_pattern_size must not exceed max_pattern_size", name)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True, omit_defaults=True):
    """Parameters of one request.

    n: completions per prompt. temperature: 0 (or below 1e-5) is greedy. top_k: 0 or -1 is off. seed: any 64-bit integer;
    the random number for a token depends on (seed, position) alone. max_tokens: None means the rest of the context.
    stop: strings that end the text; stop_regex: regular expressions that do; stop_token_ids: tokens that end it. logprobs: None, or how
    many alternatives to report per output token (0: the chosen one alone). prompt_logprobs: the same for the prompt's tokens.
    logit_bias: token id to a number added to its logit. bad_words: texts that may not come out. allowed_token_ids: the only tokens that
    may. structured_outputs: a JSON schema, regex, choice or grammar that the output follows. repetition_detection: ends an output that
    only repeats itself, with finish reason 'repetition'. detokenize: False gives no text, only tokens. stream_interval: a stream gives
    something out after so many tokens (the first at once). output_kind: what AsyncLLM's outputs hold. skip_reading_prefix_cache:
    compute the prompt even if it is cached. thinking_token_budget: most tokens of reasoning (None, -1: no limit); then it is ended.
    logprob_token_ids: with logprobs, report these tokens instead of the most likely. spaces_between_special_tokens: for programs that
    come from vLLM; no tokenizer here puts spaces there.

    A single string is taken as a list of one in stop and stop_regex, None as nothing where the default is empty.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    bad_words: list[str] = []
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    detokenize: bool = True
    stream_interval: int = 1
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_reading_prefix_cache: bool = False
    spaces_between_special_tokens: bool = True
    thinking_token_budget: int | None = None
    logprob_token_ids: list[int] | None = None
    stop_regex: list[str] = []

    def __post_init__(self) -> None:
        for name in _PATTERNS:
            if isinstance(getattr(self, name), str):
                msgspec.structs.force_setattr(self, name, [getattr(self, name)])
        for name in (*_LISTS, "logit_bias"):
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, {} if name == "logit_bias" else [])

    @property
    def num_logprobs(self) -> int | None:
        """How many tokens to report for each one of the output; None: nothing at all."""
        return len(self.logprob_token_ids) if self.logprob_token_ids else self.logprobs

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def _check_kinds(self) -> None:
        """What is neither number nor text: the scheduler decodes strictly and would not understand another kind."""
        for name in (*_LISTS, "allowed_token_ids", "logprob_token_ids"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (list, tuple, set, frozenset)):
                raise InvalidRequestError(f"{name} must be a list, got {value!r:.40}", name)
        if not isinstance(self.logit_bias, dict):
            raise InvalidRequestError(f"logit_bias must be a dict, got {self.logit_bias!r:.40}", "logit_bias")
        for name in _SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidRequestError(f"{name} must be True or False, got {value!r:.40}", name)
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InvalidRequestError("structured_outputs must be a StructuredOutputsParams", "structured_outputs")
        kind: Any = self.output_kind
        if isinstance(kind, bool) or kind not in tuple(RequestOutputKind):
            raise InvalidRequestError(f"output_kind must be a RequestOutputKind, got {kind!r:.40}", "output_kind")

    def validate(self, vocab_size: int, max_logprobs: int = 20) -> SamplingParams:
        """Check every field; returns self so that calls chain.

        Raises InvalidRequestError naming the field.
        """
        self._check_kinds()
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1, INT64 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 1e6, open_low=True)
        if self.seed is not None:
            _integer("seed", self.seed, -INT64, INT64 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, INT64 - 1)
        _integer("min_tokens", self.min_tokens, 0, INT64 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", "min_tokens")
        _count("stop", self.stop, MAX_STOP_STRINGS)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError("stop strings must be non-empty strings", "stop")
            if len(text) > MAX_STOP_CHARS:
                raise InvalidRequestError(f"a stop string may have at most {MAX_STOP_CHARS} characters, got {len(text)}", "stop")
        _count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _token_ids("stop_token_ids", self.stop_token_ids, vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _integer(name, value, 0, max_logprobs)
        _count("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        _token_ids("logit_bias", self.logit_bias, vocab_size)
        for bias in self.logit_bias.values():
            _number("logit_bias", bias, -100.0, 100.0)
        _count("bad_words", self.bad_words, MAX_BAD_WORDS)
        if any(not isinstance(word, str) or not word for word in self.bad_words):
            raise InvalidRequestError("bad_words must be non-empty strings", "bad_words")
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidRequestError("allowed_token_ids must not be empty", "allowed_token_ids")
            _count("allowed_token_ids", self.allowed_token_ids, vocab_size)
            _token_ids("allowed_token_ids", self.allowed_token_ids, vocab_size)
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise InvalidRequestError("structured_outputs must be a StructuredOutputsParams", "structured_outputs")
            self.structured_outputs.validate()
        _integer("stream_interval", self.stream_interval, 1, INT64 - 1)
        if self.repetition_detection is not None:
            if not isinstance(self.repetition_detection, RepetitionDetectionParams):
                raise InvalidRequestError("repetition_detection must be a RepetitionDetectionParams", "repetition_detection")
            self.repetition_detection.validate()
        if self.thinking_token_budget is not None:
            _integer("thinking_token_budget", self.thinking_token_budget, -1, INT64 - 1)
        if self.logprob_token_ids:
            if self.logprobs is None:
                raise InvalidRequestError("logprob_token_ids needs logprobs", "logprob_token_ids")
            _count("logprob_token_ids", self.logprob_token_ids, max_logprobs)
            _token_ids("logprob_token_ids", self.logprob_token_ids, vocab_size)
            if len(set(self.logprob_token_ids)) < len(self.logprob_token_ids):
                raise InvalidRequestError("logprob_token_ids has a token twice", "logprob_token_ids")
        _count("stop_regex", self.stop_regex, MAX_STOP_REGEX)
        if any(not isinstance(pattern, str) or not pattern for pattern in self.stop_regex):
            raise InvalidRequestError("stop_regex must be non-empty strings", "stop_regex")
        for name in ("stop", "stop_regex"):
            if getattr(self, name) and not self.detokenize:
                raise InvalidRequestError(f"{name} needs detokenize", name)
        return self


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, got {value!r:.40}", name)
    if value > high or value < low or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], got {value!r:.40}", name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r:.40}", name)
    if value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, got {value}", name)
    if value > high:
        raise InvalidRequestError(
            f"{name} must be at most {high}, got {value:.6g}" if value > 10**12 else f"{name} must be at most {high}, got {value}", name
        )


def _count(name: str, values: Any, limit: int) -> None:
    if len(values) > limit:
        raise InvalidRequestError(f"{name} may have at most {limit} entries, got {len(values)}", name)


def _token_ids(name: str, values: Any, vocab_size: int) -> None:
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise InvalidRequestError(f"{name} has {token!r:.40}, which is not a token id of this model (0 to {vocab_size - 1})", name)
