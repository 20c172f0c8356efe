"""Beam search: the most likely continuations of a prompt, found by steps of one token for every beam.

`BeamSearch` is the search itself: what the model says of each beam goes in, the beams to extend come out. It decides as the Transformers
library's `generate(num_beams=...)` does, which is the oracle of its tests. `search` runs one over the engine: each step submits every
beam with the tokens it has, and the prefix cache holds what the beams share.

Penalties, bias, bad words, allowed tokens and grammars change each token's log-probability, or forbid it, before the search sees it. As in
the Transformers library, what is left is not normalised again, so a beam's sum counts what it was kept from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from frontend import completing
from frontend.detokenizer import Detokenizer
from frontend.logprob_rows import LogprobRow
from frontend.outputs import CompletionOutput, RequestOutput
from frontend.stop_strings import Stops, stops_of
from frontend.stream import REASONS, CollectStream, Gather, Stream, Work
from frontend.tokenizer import Tokenizer
from ipc.errors import InvalidRequestError
from ipc.messages import Finished, FinishReason
from ipc.sampling_params import SamplingParams

if TYPE_CHECKING:
    from frontend.engine_client import EngineClient

FIELD = "use_beam_search"
EarlyStopping = bool | str


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to search. width: beams, and results. length_penalty: a result's score is its log-probability by its length to this power.

    early_stopping: True ends as soon as there are `width` results; False when no beam, at its present length, beats the worst of them;
    'never' when none can, whatever its length.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False


class BeamText:
    """A beam's text, read for stop strings."""

    __slots__ = ("_detokenizer", "_matcher")

    def __init__(self, detokenizer: Detokenizer, matcher: Stops) -> None:
        self._detokenizer, self._matcher = detokenizer, matcher

    def followed_by(self, token: int, looks: bool) -> tuple[BeamText, bool]:
        """The text with one token more, and whether a stop string is complete in it. looks: it may be; else the text is passed over."""
        longer = BeamText(self._detokenizer.copy(), self._matcher.copy())
        text = longer._detokenizer.feed(token)
        if text and looks:
            longer._matcher.feed(text)
        return longer, longer._matcher.matched is not None


@dataclass(slots=True)
class Beam:
    """Tokens so far, the log-probability of all of them, and what the model said at each. text: where stop strings are looked for.
    score, reason, stop_token: of a result; the token that ended it, or -1."""

    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    rows: list[LogprobRow] = field(default_factory=list)
    text: BeamText | None = None
    score: float = 0.0
    reason: FinishReason = FinishReason.LENGTH
    stop_token: int = -1


class BeamSearch:
    """One search. running: beams to extend, the best first. results: those that have ended, the best first."""

    def __init__(
        self, wishes: Wishes, stop_ids: frozenset[int], max_tokens: int, min_tokens: int = 0, text: BeamText | None = None
    ) -> None:
        """text: of no tokens yet; None if no stop string is looked for."""
        self._wishes, self._stop_ids = wishes, stop_ids
        self._max_tokens, self._min_tokens = max_tokens, min_tokens
        self.running: list[Beam] = [Beam(text=text)]
        self.results: list[Beam] = []

    @property
    def num_candidates(self) -> int:
        """How many of the most likely tokens of each beam decide: enough that beams are left even if the best all end."""
        return max(2, 1 + len(self._stop_ids)) * self._wishes.width

    def step(self, rows: Sequence[LogprobRow | None]) -> None:
        """Extend the beams: rows[i] tells of the tokens that may follow running[i], None: it is complete, and nothing may. Nothing runs
        any more when the search is over."""
        width = self._wishes.width
        for beam, row in zip(self.running, rows):
            if row is None:
                beam.reason = FinishReason.STOP
                self._end(beam)
        found = [
            (beam.logprob + value, place, token, rank)
            for place, (beam, row) in enumerate(zip(self.running, rows))
            if row is not None
            for rank, (token, value) in enumerate(zip(row[2], row[3]))
            if token >= 0 and not (token in self._stop_ids and len(beam.ids) + 1 < self._min_tokens)
        ]
        found.sort(key=lambda each: (-each[0], each[1], each[2]))
        going: list[Beam] = []
        for number, (logprob, place, token, rank) in enumerate(found[: self.num_candidates]):
            parent, (_, _, ids, values) = self.running[place], rows[place] or _NOTHING
            beam = Beam([*parent.ids, token], logprob, [*parent.rows, (values[rank], rank + 1, ids, values)])
            if self._stops(beam, parent.text) or len(beam.ids) >= self._max_tokens:
                # Others are only here so that enough go on.
                if number < width:
                    self._end(beam)
            elif len(going) < width:
                going.append(beam)
        self.running = [] if self._is_over(going) else going

    def _stops(self, beam: Beam, before: BeamText | None) -> bool:
        """Whether its last token ends it; a stop token is not part of the text."""
        token, stops = beam.ids[-1], False
        if token in self._stop_ids:
            beam.stop_token, stops = token, True
        elif before is not None:
            beam.text, stops = before.followed_by(token, len(beam.ids) > self._min_tokens)
        if stops:
            beam.reason = FinishReason.STOP
        return stops

    def _end(self, beam: Beam) -> None:
        if self._wishes.early_stopping is True and len(self.results) == self._wishes.width:
            return
        beam.score = beam.logprob / max(1, len(beam.ids)) ** self._wishes.length_penalty
        self.results.append(beam)
        self.results.sort(key=lambda each: -each.score)
        del self.results[self._wishes.width :]

    def _is_over(self, going: list[Beam]) -> bool:
        if not going:
            return True
        if len(self.results) < self._wishes.width:
            return False
        if self._wishes.early_stopping is True:
            return True
        power = self._wishes.length_penalty
        length = self._max_tokens if self._wishes.early_stopping == "never" and power > 0 else len(going[0].ids)
        return going[0].logprob / float(length**power) <= self.results[-1].score


_NOTHING: LogprobRow = (0.0, 0, [], [])
# What of the request's parameters changes a beam's log-probabilities, beside bad words and grammar, which a Work has; with neutral values.
_CHANGES = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "allowed_token_ids": None,
}


class _StepStream(Stream):
    """Reads the one token of a beam's step, and of it only what the model said; nothing, where the beam's grammar is complete."""

    __slots__ = ("_gather", "said")

    def __init__(self, work: Work, tokenizer: Tokenizer, gather: Gather) -> None:
        super().__init__(work, tokenizer)
        self._gather = gather
        self.said: LogprobRow | None = None

    def push(self, token: int) -> bool:
        self.said = self.row
        return False

    def push_last(self, token: int) -> None:
        self.said = self.row

    def on_end(self) -> None:
        self._gather.ended(self.error)


async def run(client: EngineClient, prompts: Sequence[Sequence[Work]], beams: Wishes | None) -> list[RequestOutput]:
    """Each prompt's completions: drawn, or with `beams` searched for. If one fails, the others are aborted."""
    if beams is None:
        return await completing.run(client, prompts)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(search(client, works, beams)) for works in prompts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result()[0] for task in tasks]


async def search(client: EngineClient, works: Sequence[Work], wishes: Wishes) -> tuple[RequestOutput, list[Beam]]:
    """The best continuations of one prompt. works: one for each of `wishes.width` results, as `Preparer.prepare` makes them.

    Raises InvalidRequestError for parameters that beam search cannot honour. Cancelling the caller aborts it.
    """
    work = works[0]
    _check(work)
    params = work.params
    stop_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else client.spec.model.eos_token_ids)
    found = BeamSearch(wishes, stop_ids, params.max_tokens or 1, params.min_tokens, _text(client.tokenizer, work))
    limit = client.spec.config.model.max_logprobs
    if found.num_candidates > limit:
        most = limit * wishes.width // found.num_candidates
        raise InvalidRequestError(f"with beam search n may be at most {most} on this server (--max-logprobs {limit})", "n")
    cached: int | None = None
    while found.running:
        streams = await _step(client, work, found)
        if cached is None:
            cached = streams[0].cached_tokens
        found.step([stream.said for stream in streams])
    if not found.results:
        raise InvalidRequestError("the search found nothing: what the request forbids left no token that may follow", FIELD)
    outputs = [_written(client.tokenizer, each, beam) for each, beam in zip(works, found.results)]
    if client.metrics is not None:
        client.metrics.count("request_success", REASONS[found.results[0].reason])
    return RequestOutput(
        work.request_id, work.prompt, work.prompt_ids, None, outputs, finished=True, num_cached_tokens=cached
    ), found.results


def _text(tokenizer: Tokenizer, work: Work) -> BeamText | None:
    """Reads what the work's own stream will read."""
    params, splitting = work.params, work.splitting
    stops = stops_of(params)
    if stops is None:
        return None
    detokenizer = tokenizer.detokenizer(params.skip_special_tokens, splitting.kept if splitting is not None else frozenset())
    return BeamText(detokenizer, stops)


async def _step(client: EngineClient, work: Work, found: BeamSearch) -> list[_StepStream]:
    """One token more for each beam."""
    gather = Gather(asyncio.get_running_loop(), len(found.running))
    changes = {name: value for name, neutral in _CHANGES.items() if (value := getattr(work.params, name)) != neutral}
    scores = bool(changes or work.bad_words or work.grammar)
    streams = []
    for place, beam in enumerate(found.running):
        length = len(beam.ids) + 1
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, logprobs=found.num_candidates, **changes)
        identity = f"{work.request_id}-beam-{place}"
        step = msgspec.structs.replace(work, request_id=identity, index=0, params=params, splitting=None, counts=False, scores=scores)
        stream = _StepStream(step, client.tokenizer, gather)
        stream.ids = list(beam.ids)
        streams.append(stream)
    try:
        client.open(streams)
        await gather.future
    finally:
        client.drop(streams)
    return streams


def _written(tokenizer: Tokenizer, work: Work, beam: Beam) -> CompletionOutput:
    """A result as if its tokens had come from the engine one by one."""
    gather = Gather(asyncio.get_running_loop(), 1)
    stream = CollectStream(work, tokenizer, gather)
    for place, (token, row) in enumerate(zip(beam.ids, beam.rows), 1):
        stream.ids.append(token)
        stream.row = row if work.params.logprobs is not None else None
        if beam.stop_token >= 0 and place == len(beam.ids):
            stream.push_last(token)
        else:
            stream.push(token)
    stream.end(REASONS[beam.reason], Finished(0, beam.reason, beam.stop_token))
    return stream.completion()


# Field to the value at which it does nothing.
_NEUTRAL = {
    "prompt_logprobs": None,
    "repetition_detection": None,
    "thinking_token_budget": None,
    "logprob_token_ids": None,
}


def _check(work: Work) -> None:
    for name, neutral in _NEUTRAL.items():
        if getattr(work.params, name) != neutral:
            raise InvalidRequestError(f"{name} cannot be combined with beam search", name)
