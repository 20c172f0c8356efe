"""Beam search from Python, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from frontend import beam_search
from frontend.beam_search import Wishes
from frontend.engine_client import EngineClient
from frontend.outputs import TokenLogprobs
from ipc.errors import InvalidRequestError, QueueFullError
from ipc.grammar import StructuredOutputsParams
from ipc.sampling_params import MAX_N, SamplingParams
from quire.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """beam_width: beams, and results. max_tokens: of each result. length_penalty: results are ordered by their log-probability divided by
    their length to this power. early_stopping: True, False or 'never', as in the Transformers library. temperature: takes no value but 0.
    stop, stop_token_ids: strings and tokens that end a result, as the end of text does; min_tokens: none does before. What follows them
    means what it means in SamplingParams, and changes by what the results are found and scored.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | str = False
    stop: str | tuple[str, ...] | list[str] = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] | list[str] = ()
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def sampling_params(self) -> SamplingParams:
        """What the engine is told. Raises InvalidRequestError naming the field."""
        if not isinstance(self.beam_width, int) or not 1 <= self.beam_width <= MAX_N:
            raise InvalidRequestError(f"beam_width must be an integer from 1 to {MAX_N}", "beam_width")
        if self.temperature != 0:
            raise InvalidRequestError("temperature must be 0: beam search draws nothing", "temperature")
        if self.early_stopping not in (True, False, "never"):
            raise InvalidRequestError("early_stopping must be True, False or 'never'", "early_stopping")
        return SamplingParams(
            n=self.beam_width,
            temperature=0.0,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
            stop=[self.stop] if isinstance(self.stop, str) else list(self.stop),
            stop_token_ids=list(self.stop_token_ids),
            min_tokens=self.min_tokens,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            bad_words=list(self.bad_words),
            allowed_token_ids=self.allowed_token_ids,
            structured_outputs=self.structured_outputs,
            logprobs=0,
        )

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.beam_width, float(self.length_penalty), self.early_stopping)


@dataclass(slots=True)
class BeamSearchSequence:
    """One result. tokens: the prompt's and the new ones; text: of the new ones. score: cum_logprob, by the length penalty."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    cum_logprob: float
    score: float
    text: str
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(slots=True)
class BeamSearchOutput:
    """One prompt's results, the best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


async def run(client: EngineClient, prompts: Sequence[Prompt], params: BeamSearchParams, limit: int) -> list[BeamSearchOutput]:
    """Search for every prompt, with at most `limit` beams at once. The first error cancels the rest."""
    sampling = params.sampling_params()
    places = asyncio.Semaphore(max(1, limit // params.beam_width))

    async def one(prompt: Prompt) -> BeamSearchOutput:
        async with places:
            works = await client.preparer.prepare(prompt, sampling)
            while True:
                try:
                    output, beams = await beam_search.search(client, works, params.wishes)
                    break
                except QueueFullError as error:
                    await asyncio.sleep(min(max(error.retry_after, 0.05), 5.0))
        found = BeamSearchOutput()
        for each, beam in zip(output.outputs, beams):
            tokens = output.prompt_token_ids + each.token_ids
            found.sequences.append(
                BeamSearchSequence(tokens, each.logprobs or [], beam.logprob, beam.score, each.text, each.finish_reason, each.stop_reason)
            )
        return found

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in prompts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
