"""What a finished or growing request gives its caller; names as in vLLM, so that programs move over unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field

from frontend.output_split import Message


@dataclass(slots=True)
class Logprob:
    """One token's natural-log probability at one position. rank: 1 is the most likely token; decoded_token: its text alone."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# One per token, keyed by token id: the chosen token and the most likely ones. Prompts begin with None: their first token has none.
TokenLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt, or in a stream what is new of it.

    finish_reason: 'stop', 'length', 'abort', 'repetition', 'tool_calls' (it ended by itself, and calls tools), or None while it grows.
    stop_reason: the stop token's id or the stop string that ended it. token_ids hold a stop token, text does not. message: of a chat, the
    text taken apart into content, reasoning and tool calls; reasoning_tokens: how many of the tokens are reasoning.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    message: Message | None = None
    reasoning_tokens: int = 0

    @property
    def cumulative_logprob(self) -> float | None:
        """Of all tokens together; None where logprobs were not asked for."""
        if self.logprobs is None:
            return None
        return sum(entry[token].logprob for token, entry in zip(self.token_ids, self.logprobs))


@dataclass(slots=True)
class EmbeddingOutput:
    """The vector of one prompt."""

    embedding: list[float]


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """One prompt and its vector, in `outputs` as in vLLM. num_cached_tokens: as RequestOutput's."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass(slots=True)
class RequestMetrics:
    """CLOCK_MONOTONIC seconds; 0 where it has not happened. queued: from arrival to the first step, in seconds."""

    arrival: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    queued: float = 0.0


@dataclass(slots=True)
class RequestOutput:
    """One prompt's completions. num_cached_tokens: prompt tokens from the prefix cache; None where the engine did not say."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
