"""Fields that completions and chat completions share, by OpenAI's and vLLM's names.

Accepted and ignored, because they cannot change what is generated here: user, metadata, store, service_tier, safety_identifier,
prompt_cache_key, prompt_cache_retention, prompt_cache_options, moderation, verbosity, prediction (it makes OpenAI's servers faster),
modalities=["text"], session_id, rid, data_parallel_rank, spaces_between_special_tokens (no tokenizer here puts spaces there), and all
names that we do not know. Names that would change it and that this version does not have are refused: frontend/schemas/refused.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from frontend.beam_search import Wishes
from frontend.preparation import Truncation
from frontend.schemas.numbers import Int, integer
from frontend.schemas.refused import RefusedFields
from frontend.schemas.structured import structured_outputs
from frontend.sse import Extras
from ipc.config import ModelInfo
from ipc.errors import InvalidRequestError
from ipc.sampling_params import RepetitionDetectionParams, SamplingParams

MAX_SALT = 128
MAX_LENGTH_PENALTY = 10


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Repetition(msgspec.Struct):
    """As in vLLM: a pattern of at most max_pattern_size tokens that comes min_count times in a row ends the output. 0 is off."""

    max_pattern_size: Int = 0
    min_pattern_size: Int = 0
    min_count: Int = 0

    def params(self) -> RepetitionDetectionParams | None:
        """Raises InvalidRequestError for numbers that make no pattern."""
        names = ("max_pattern_size", "min_pattern_size", "min_count")
        longest, shortest, count = (integer("repetition_detection", getattr(self, name)) or 0 for name in names)
        if not longest:
            return None
        return RepetitionDetectionParams(max_pattern_size=longest, min_pattern_size=shortest or 1, min_count=count)


class GenerationRequest(RefusedFields, kw_only=True):
    """What a client may say about how to generate."""

    model: str | None = None
    n: Int = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int = None
    max_tokens: Int = None
    min_tokens: Int = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Int = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    priority: Int = None
    cache_salt: str | None = None
    request_id: str | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_prompt_text: bool | None = None
    truncate_prompt_tokens: Int = None
    truncation_side: str | None = None
    stream_interval: Int = None
    repetition_detection: Repetition | None = None
    thinking_token_budget: Int = None
    logprob_token_ids: list[int] | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    timeout: float | None = None  # seconds from the request's arrival
    # Older and other engines' names for structured_outputs (frontend/schemas/structured.py).
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_whitespace_pattern: Any = None
    guided_decoding_backend: Any = None
    structural_tag: Any = None
    regex: Any = None
    ebnf: Any = None
    json_schema: Any = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and (self.stream_options.include_usage or self.stream_options.continuous_usage_stats))

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def extras(self) -> Extras:
        """What chunks of a stream carry besides."""
        interval = integer("stream_interval", self.stream_interval) or 1
        return Extras(bool(self.return_token_ids), bool(self.return_prompt_text), interval)

    @property
    def count(self) -> int:
        """n. Raises InvalidRequestError when it is no integer."""
        count = integer("n", self.n)
        return 1 if count is None else count

    def beams(self) -> Wishes | None:
        """How to search for the most likely answers; None to draw them. Raises InvalidRequestError."""
        if not self.use_beam_search:
            for name, harmless in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) not in (None, harmless):
                    raise InvalidRequestError(f"{name} needs use_beam_search", name)
            return None
        if self.stream:
            raise InvalidRequestError("the results of a beam search cannot be streamed", "stream")
        power, early = self.length_penalty, self.early_stopping
        if power is not None and not -MAX_LENGTH_PENALTY <= power <= MAX_LENGTH_PENALTY:
            raise InvalidRequestError(f"length_penalty must be between -{MAX_LENGTH_PENALTY} and {MAX_LENGTH_PENALTY}", "length_penalty")
        if isinstance(early, str) and early != "never":
            raise InvalidRequestError("early_stopping must be true, false or 'never'", "early_stopping")
        return Wishes(self.count, 1.0 if power is None else power, early or False)

    def truncation(self) -> Truncation | None:
        """How to shorten the prompt. Raises InvalidRequestError."""
        return truncation_of(self)

    def check(self, policy: str) -> None:
        """Raise InvalidRequestError for what this version cannot honour and for fields that contradict one another."""
        self.refuse()
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream to be true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs cannot be streamed", "prompt_logprobs")
        check_place(self, policy)

    def sampling_params(self, model: ModelInfo, logprobs: int | None, max_tokens: int | None) -> SamplingParams:
        """The engine's parameters; what the client leaves out comes from the model's generation_config.json, then from OpenAI's defaults.

        Raises InvalidRequestError for values that have no meaning; ranges are checked by SamplingParams.validate.
        """
        values: dict[str, Any] = {"logprobs": logprobs, "max_tokens": max_tokens}
        if not self.use_beam_search:  # the model's advice is about drawing
            values |= model.generation_defaults
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "stop_token_ids",
            "ignore_eos",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "bad_words",
            "allowed_token_ids",
            "logprob_token_ids",
        ):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        for name in ("n", "top_k", "seed", "min_tokens", "prompt_logprobs", "stream_interval", "thinking_token_budget"):
            value = integer(name, getattr(self, name))
            if value is not None:
                values[name] = value
        values["top_k"] = int(values.get("top_k", 0))
        for name in ("stop", "stop_regex"):
            given = getattr(self, name)
            if given is not None:
                values[name] = [given] if isinstance(given, str) else given
        if self.logit_bias is not None:
            values["logit_bias"] = _bias(self.logit_bias)
        if self.repetition_detection is not None:
            values["repetition_detection"] = self.repetition_detection.params()
        values["structured_outputs"] = structured_outputs(self)
        return SamplingParams(**values)


class Placed(Protocol):
    """What every request for the engine's time may say, whatever it asks for."""

    priority: Int
    cache_salt: str | None
    request_id: str | None
    truncate_prompt_tokens: Int
    truncation_side: str | None


def check_place(body: Placed, policy: str) -> None:
    """Raise InvalidRequestError for a priority, salt or name that cannot be."""
    if body.priority and policy != "priority":
        raise InvalidRequestError("priority needs a server that runs with --scheduling-policy priority", "priority")
    if body.cache_salt is not None and not 0 < len(body.cache_salt) <= MAX_SALT:
        raise InvalidRequestError(f"cache_salt must have 1 to {MAX_SALT} characters", "cache_salt")
    if body.request_id is not None and not 0 < len(body.request_id) <= 128:
        raise InvalidRequestError("request_id must have 1 to 128 characters", "request_id")


def truncation_of(body: Placed) -> Truncation | None:
    """How to shorten the prompt. Raises InvalidRequestError."""
    limit = integer("truncate_prompt_tokens", body.truncate_prompt_tokens)
    if body.truncation_side not in (None, "left", "right"):
        raise InvalidRequestError("truncation_side must be left or right", "truncation_side")
    if limit is None:
        return None
    if limit < -1 or limit == 0:
        raise InvalidRequestError(f"truncate_prompt_tokens must be at least 1, or -1, got {limit}", "truncate_prompt_tokens")
    return Truncation(limit, keeps_end=body.truncation_side != "right")


def _bias(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise InvalidRequestError("logit_bias must map token ids to numbers", "logit_bias") from None
