"""A frontend's reader of one request: what it asked for, what came, and how tokens become text.

The engine client calls `push` for each new token, in order, and `end` once. What happens with the text is the subclass's business; none of
them wakes a task per token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from frontend.logprob_rows import LogprobRow
from frontend.output_split import Delta, Kind, Message, Splitter, Splitting
from frontend.outputs import CompletionOutput, Logprob, RequestMetrics, TokenLogprobs
from frontend.repetition import RepetitionWatch
from frontend.stop_strings import stops_of
from frontend.tokenizer import Tokenizer
from ipc.grammar import Grammar
from ipc.messages import Finished, FinishReason, Started
from ipc.sampling_params import SamplingParams, ThinkingLimit

REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort", FinishReason.ERROR: "error"}

_NONE: frozenset[int] = frozenset()


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One completion to compute: all that a Submit says, checked and tokenized. index: which of the prompt's n completions.

    deadline_ns: CLOCK_MONOTONIC nanoseconds at which it fails if it has not ended; 0 is never. splitting: how the text is taken apart.
    counts: whether metrics and log tell of it; False for the steps of a beam search. thinking: how long the model may reason.
    embed: it is no completion; its prompt's vector is wanted. scores: its log-probabilities are to be those that a search goes by
    (RowSetup.scores).
    """

    request_id: str
    index: int
    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    arrival_ns: int
    priority: int = 0
    cache_salt: str = ""
    bad_words: list[list[int]] = []
    deadline_ns: int = 0
    grammar: Grammar | None = None
    splitting: Splitting | None = None
    counts: bool = True
    thinking: ThinkingLimit | None = None
    embed: bool = False
    scores: bool = False


class Stream:
    """Base of all readers.

    ids: output tokens so far, a stop token included. started: the scheduler's first word on it. reason, stop_reason, error: set by `end`.
    finished: the scheduler's last word, None when a stop string or an abort ended the stream here.
    """

    __slots__ = (
        "_detokenizer",
        "_stop",
        "_tokenizer",
        "_watch",
        "error",
        "finished",
        "first_ns",
        "handle",
        "ids",
        "last_ns",
        "prompt_rows",
        "reason",
        "row",
        "started",
        "stop_reason",
        "timer",
        "work",
    )

    def __init__(self, work: Work, tokenizer: Tokenizer) -> None:
        self.work = work
        self.handle = 0
        self.ids: list[int] = []
        self.first_ns = 0
        self.last_ns = 0
        self.row: LogprobRow | None = None  # logprobs of the token that is being pushed
        self.prompt_rows: dict[int, LogprobRow] = {}
        self.reason: str | None = None
        self.stop_reason: int | str | None = None
        self.error: Exception | None = None
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.timer: asyncio.TimerHandle | None = None  # its deadline, while it runs
        self._tokenizer = tokenizer
        params = work.params
        kept = work.splitting.kept if work.splitting is not None else _NONE
        self._detokenizer = tokenizer.detokenizer(params.skip_special_tokens, kept)
        self._stop = stops_of(params)
        self._watch = RepetitionWatch(params.repetition_detection) if params.repetition_detection is not None else None

    # called by the engine client

    def push(self, token: int) -> bool:
        """The next token, already in `ids`. True when the output is to end here: a stop string is complete, or it repeats itself."""
        raise NotImplementedError

    def push_last(self, token: int) -> None:
        """The stop token that ended the request, already in `ids`; it is no text unless stop strings are."""
        raise NotImplementedError

    def end(self, reason: str, finished: Finished | None = None, error: Exception | None = None) -> None:
        """Nothing more comes."""
        self.reason, self.finished, self.error = reason, finished, error
        if finished is not None and finished.stop_token >= 0 and finished.stop_token in self.work.params.stop_token_ids:
            self.stop_reason = finished.stop_token
        elif self._stop is not None and self._stop.matched is not None:
            self.stop_reason = self._stop.matched
        self.on_end()

    def on_end(self) -> None:
        """What the subclass does with the end."""
        raise NotImplementedError

    # for subclasses

    def text_of(self, token: int) -> str:
        """Text that may go out after `token`; check `stopped` after it."""
        text = self._detokenizer.feed(token)
        if self._stop is None or len(self.ids) <= self.work.params.min_tokens:
            return text
        return self._stop.feed(text) if text else text

    def last_text(self) -> str:
        """Text that was held back; call once, at the end."""
        if self._stop is None:
            return self._detokenizer.finish()
        if self._stop.matched is not None:
            return ""
        text = self._stop.feed(self._detokenizer.finish())
        return text if self._stop.matched is not None else text + self._stop.finish()

    @property
    def watched(self) -> bool:
        """Whether something here may end the output, so that every token must be looked at."""
        return self._stop is not None or self._watch is not None

    @property
    def stopped(self) -> bool:
        """Whether it has."""
        return (self._stop is not None and self._stop.matched is not None) or (self._watch is not None and self._watch.ends(self.ids))

    @property
    def ending(self) -> str:
        """The finish reason of an output that ends here."""
        return "repetition" if self._watch is not None and self._watch.found and not (self._stop and self._stop.matched) else "stop"

    @property
    def cached_tokens(self) -> int | None:
        return None if self.started is None else self.started.num_cached

    @property
    def shown_ids(self) -> list[int]:
        """All tokens but a stop token that is no text."""
        ended_by_token = self.finished is not None and self.finished.stop_token >= 0
        return self.ids[:-1] if ended_by_token and not self.work.params.include_stop_str_in_output else self.ids

    def logprobs_of(self, token: int, row: LogprobRow, limit: int | None) -> TokenLogprobs:
        """The chosen token first, then the `limit` most likely, by id; or those that the request names."""
        logprob, rank, top_ids, top_logprobs = row
        text = self._tokenizer.token_text
        if self.work.params.logprob_token_ids:
            named = {each: Logprob(value, None, text(each)) for each, value in zip(top_ids, top_logprobs) if each >= 0}
            return {token: Logprob(logprob, rank, text(token)), **{each: named[each] for each in named if each != token}}
        tops = {top: (value, place) for place, (top, value) in enumerate(zip(top_ids[: limit or 0], top_logprobs), 1) if top >= 0}
        found = {token: Logprob(tops[token][0] if token in tops else logprob, rank, text(token))}
        for top, (value, place) in tops.items():
            if top != token:
                found[top] = Logprob(value, place, text(top))
        return found

    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """One entry per prompt token, None for the first; None if they were not asked for."""
        limit = self.work.params.prompt_logprobs
        if limit is None:
            return None
        found: list[TokenLogprobs | None] = [None]
        for position in range(1, len(self.work.prompt_ids)):
            row = self.prompt_rows.get(position)
            found.append(None if row is None else self.logprobs_of(self.work.prompt_ids[position], row, limit))
        return found

    def metrics(self) -> RequestMetrics:
        queued = self.started.queued_ns if self.started is not None else 0
        return RequestMetrics(self.work.arrival_ns * 1e-9, self.first_ns * 1e-9, self.last_ns * 1e-9, queued * 1e-9)


class Gather:
    """Waits for several streams with one future: it is done when all have ended, or fails with the first error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self._left = count

    def ended(self, error: Exception | None) -> None:
        self._left -= 1
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        elif self._left == 0:
            self.future.set_result(None)


class CollectStream(Stream):
    """Keeps everything for one answer at the end. Without stop strings and a splitter, text is made once, from all tokens.

    message: the text taken apart, where the work asks for it.
    """

    __slots__ = ("_deltas", "_gather", "_parts", "_plain_from", "_plain_part", "_splitter", "logprobs", "message", "text")

    def __init__(self, work: Work, tokenizer: Tokenizer, gather: Gather) -> None:
        super().__init__(work, tokenizer)
        self._gather = gather
        self._parts: list[str] = []
        self.logprobs: list[TokenLogprobs] | None = [] if work.params.logprobs is not None else None
        self.text = ""
        self.message: Message | None = None
        self._splitter = work.splitting.splitter() if work.splitting is not None else None
        self._deltas: list[Delta] = []
        self._plain_from = -1  # from this token, and from _plain_part in _parts, all is content and the splitter is not asked any more
        self._plain_part = 0

    @property
    def reasoning_tokens(self) -> int:
        return self._splitter.reasoning_tokens if self._splitter is not None else 0

    def completion(self) -> CompletionOutput:
        """What came of it, when it has ended."""
        called = self.message is not None and bool(self.message.calls)
        return CompletionOutput(
            self.work.index,
            self.text,
            self.ids,
            self.logprobs,
            _finish_reason(self.reason, called),
            self.stop_reason,
            self.message,
            self.reasoning_tokens,
        )

    def push(self, token: int) -> bool:
        if self.row is not None:
            self._keep_logprobs(token)
        if self._splitter is not None and self._plain_from < 0:
            text = self.text_of(token)
            self._parts.append(text)
            self._deltas += self._splitter.feed_token(text)
            if self._splitter.plain:
                self._deltas += self._splitter.release()
                self._plain_from, self._plain_part = len(self.ids), len(self._parts)
            return self.stopped or self._splitter.done
        if self._stop is not None:
            self._parts.append(self.text_of(token))
        elif self._watch is None:
            return False
        return self.stopped

    def push_last(self, token: int) -> None:
        if self.row is not None:
            self._keep_logprobs(token)
        splits = self._splitter is not None and self._plain_from < 0
        if (self._stop is not None or splits) and self.work.params.include_stop_str_in_output:
            self._parts.append(self._detokenizer.feed(token))
            if self._splitter is not None and splits:
                self._deltas += self._splitter.feed(self._parts[-1])

    def on_end(self) -> None:
        if self.error is None:
            if self._splitter is not None:
                self._finish_split(self._splitter)
            elif self._stop is not None:
                self.text = "".join(self._parts) + self.last_text()
            elif self.work.params.detokenize:
                self.text = self._tokenizer.decode(self.shown_ids, self.work.params.skip_special_tokens)
        self._gather.ended(self.error)

    def _finish_split(self, splitter: Splitter) -> None:
        plain = self._plain_from >= 0
        if plain and self._stop is None:
            self._parts += map(self._detokenizer.feed, self.shown_ids[self._plain_from :])
        self._parts.append(self.last_text())
        if plain:
            rest = "".join(self._parts[self._plain_part :])
            self._deltas += [Delta(Kind.CONTENT, rest)] if rest else []
        else:
            self._deltas += splitter.feed(self._parts[-1]) + splitter.finish()
        self.text = "".join(self._parts)
        self.message = Message.of(self._deltas)

    def _keep_logprobs(self, token: int) -> None:
        assert self.row is not None and self.logprobs is not None
        self.logprobs.append(self.logprobs_of(token, self.row, self.work.params.logprobs))


class DeltaStream(Stream):
    """Gathers what is new since the reader last looked, and rings a bell that its reader waits for: at the first token, and then
    every `stream_interval` tokens."""

    __slots__ = (
        "_bell",
        "_called",
        "_counted",
        "_deltas",
        "_interval",
        "_new_ids",
        "_new_logprobs",
        "_parts",
        "_show_reasoning",
        "_speaks",
        "_splitter",
    )

    def __init__(self, work: Work, tokenizer: Tokenizer, bell: Callable[[], Any]) -> None:
        super().__init__(work, tokenizer)
        self._bell = bell
        self._interval = work.params.stream_interval
        self._speaks = work.params.detokenize
        self._parts: list[str] = []
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprobs] = []
        splitting = work.splitting if self._speaks else None
        self._splitter = splitting.splitter() if splitting is not None else None
        self._show_reasoning = splitting is None or splitting.show_reasoning
        self._deltas: list[Delta] = []
        self._called = False
        self._counted = 0  # tokens of reasoning that the reader knows of

    def push(self, token: int) -> bool:
        self._keep(token)
        text = self.text_of(token) if self._speaks else ""
        if text:
            self._parts.append(text)
        if self._splitter is not None:
            self._deltas += self._splitter.feed_token(text)
        if self._interval == 1 or len(self.ids) % self._interval == 1:
            self._bell()
        return self.stopped or (self._splitter is not None and self._splitter.done)

    def push_last(self, token: int) -> None:
        self._keep(token)
        if self.work.params.include_stop_str_in_output and self._speaks:
            self._say(self._detokenizer.feed(token))

    def on_end(self) -> None:
        self._say(self.last_text())
        if self._splitter is not None:
            self._deltas += self._splitter.finish()
        self._bell()

    def take(self) -> CompletionOutput:
        """What is new since the last call."""
        logprobs = self._new_logprobs if self.work.params.logprobs is not None else None
        output = CompletionOutput(self.work.index, "".join(self._parts), self._new_ids, logprobs, stop_reason=self.stop_reason)
        if self._splitter is not None:
            self._called |= any(delta.kind is Kind.CALL for delta in self._deltas)
            shown = [delta for delta in self._deltas if self._show_reasoning or delta.kind is not Kind.REASONING]
            output.message = Message.of(shown)
            output.reasoning_tokens = self._splitter.reasoning_tokens - self._counted
            self._counted = self._splitter.reasoning_tokens
        output.finish_reason = _finish_reason(self.reason, self._called)
        self._parts, self._new_ids, self._new_logprobs, self._deltas = [], [], [], []
        return output

    def _say(self, text: str) -> None:
        self._parts.append(text)
        if self._splitter is not None:
            self._deltas += self._splitter.feed(text)

    def _keep(self, token: int) -> None:
        self._new_ids.append(token)
        if self.row is not None:
            self._new_logprobs.append(self.logprobs_of(token, self.row, self.work.params.logprobs))


def _finish_reason(reason: str | None, called: bool) -> str | None:
    """An answer that ended by itself and calls tools ended for them."""
    return "tool_calls" if reason == "stop" and called else reason
