"""Turns what a step gave into one Tokens message per frontend."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np

from ipc.arena import F32, I32, I64, ResultColumns
from ipc.messages import Embedding, Finished, Logprobs, PromptLogprobs, Started, Tokens
from scheduler_proc.frontends import Frontend
from scheduler_proc.request import Ending, Request
from scheduler_proc.rows import NO_LOGPROBS, Rows

Emission = tuple[str, Tokens]


class Segment(NamedTuple):
    """Consecutive sampled rows of one frontend: [low, high) and their handles as uint32 bytes."""

    frontend: int
    low: int
    high: int
    handles: bytes


class Sampled(msgspec.Struct, gc=False, eq=False):
    """The tokens of one step that are emitted, as columns.

    rows int64[n], tokens int32[n], index int64[n] (position in the request's output), positions int64[n] (places in the result columns;
    None: 0 .. n). segments: their frontends, if known already. wanted int64[n]: alternatives asked for per token, NO_LOGPROBS for
    none; None: nobody asked.
    """

    rows: I64
    tokens: I32
    index: I64
    positions: I64 | None
    segments: list[Segment] | None
    wanted: I64 | None


def segments_of(rows: I64, columns: Rows) -> list[Segment]:
    """The segments of rows that stand grouped by frontend."""
    if not len(rows):
        return []
    numbers = columns.frontend[rows]
    handles = columns.handle[rows].astype(np.uint32)
    cuts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(rows)]
    return [Segment(int(numbers[low]), low, high, handles[low:high].tobytes()) for low, high in pairwise(cuts)]


def grouped(rows: I64, columns: Rows) -> I64 | None:
    """The order in which rows stand grouped by frontend; None if they do already."""
    numbers = columns.frontend[rows]
    if len(rows) < 2 or bool((numbers[1:] >= numbers[:-1]).all()):
        return None
    return np.argsort(numbers, kind="stable")


class Emitter:
    """Collects starts, ends, prompt log-probabilities and vectors between steps, and makes the messages."""

    def __init__(self, rows: Rows, frontends: dict[int, Frontend]) -> None:
        self._rows = rows
        self._frontends = frontends
        self._started: dict[int, list[Started]] = {}
        self._finished: dict[int, list[Finished]] = {}
        self._prompt: dict[int, list[PromptLogprobs]] = {}
        self._vectors: dict[int, list[Embedding]] = {}

    @property
    def pending(self) -> bool:
        return bool(self._finished or self._prompt)

    def started(self, request: Request, num_cached: int) -> None:
        """Tell of a request's first start in the next message to its frontend, which brings its first token or its end at the latest."""
        queued_ns = max(request.first_planned_ns - request.arrival_ns, 0)
        self._started.setdefault(request.frontend.number, []).append(Started(request.handle, num_cached, queued_ns))

    def finished(self, request: Request, ending: Ending, num_known: int) -> None:
        """Tell of a request's end in the next message to its frontend."""
        self._finished.setdefault(request.frontend.number, []).append(
            Finished(
                handle=request.handle,
                reason=ending.reason,
                stop_token=ending.stop_token,
                num_prompt=request.num_prompt,
                num_output=num_known - request.num_prompt,
                num_preemptions=request.num_preemptions,
                error=ending.error,
            )
        )

    def prompt_logprobs(self, request: Request, first: int, place: int, count: int, result: ResultColumns) -> None:
        """Tell of prompt tokens first .. first+count, whose columns begin at `place` of the result's prompt columns."""
        width = request.params.prompt_logprobs or 0
        where = slice(place, place + count)
        self._prompt.setdefault(request.frontend.number, []).append(
            PromptLogprobs(
                handle=request.handle,
                start=first,
                logprob=result.prompt_logprob[where].tobytes(),
                rank=result.prompt_rank[where].tobytes(),
                width=width,
                top_ids=result.prompt_top_ids[where, :width].tobytes(),
                top_logprobs=result.prompt_top_logprobs[where, :width].tobytes(),
            )
        )

    def vector(self, request: Request, vector: F32) -> None:
        """Tell of the vector of a request that ends now."""
        self._vectors.setdefault(request.frontend.number, []).append(Embedding(request.handle, vector.tobytes()))

    def forget(self, frontend: Frontend) -> None:
        """The frontend is gone; nobody reads what waits for it."""
        self._started.pop(frontend.number, None)
        self._finished.pop(frontend.number, None)
        self._prompt.pop(frontend.number, None)
        self._vectors.pop(frontend.number, None)

    def emit(self, step: int, now_ns: int, sampled: Sampled | None, result: ResultColumns | None) -> list[Emission]:
        """One message for each frontend that has something to hear."""
        messages: list[Emission] = []
        if sampled is not None and len(sampled.rows):
            index = sampled.index.astype(np.uint32)
            tokens = sampled.tokens
            segments = sampled.segments
            if segments is None:
                segments = segments_of(sampled.rows, self._rows)
            for number, low, high, handles in segments:
                logprobs = None
                if sampled.wanted is not None and result is not None:
                    logprobs = _logprobs(sampled, sampled.wanted[low:high], low, result)
                messages.append(
                    (
                        self._frontends[number].identity,
                        Tokens(
                            step,
                            now_ns,
                            handles,
                            index[low:high].tobytes(),
                            tokens[low:high].tobytes(),
                            self._finished.pop(number, []) if self._finished else [],
                            logprobs,
                            self._prompt.pop(number, []) if self._prompt else [],
                            self._vectors.pop(number, []) if self._vectors else [],
                            self._started.pop(number, []) if self._started else [],
                        ),
                    )
                )
        if self._finished or self._prompt:
            for number in [*self._finished, *(number for number in self._prompt if number not in self._finished)]:
                ends, prompts, vectors = self._finished.get(number, []), self._prompt.get(number, []), self._vectors.get(number, [])
                starts = self._started.pop(number, [])
                messages.append(
                    (self._frontends[number].identity, Tokens(step, now_ns, b"", b"", b"", ends, None, prompts, vectors, starts))
                )
            self._finished.clear()
            self._prompt.clear()
            self._vectors.clear()  # whoever has a vector has an end as well
        return messages


def _logprobs(sampled: Sampled, wanted: I64, low: int, result: ResultColumns) -> Logprobs | None:
    """Columns of the tokens from `low` on for which `wanted` asks."""
    at = np.flatnonzero(wanted != NO_LOGPROBS)
    if not len(at):
        return None
    counts = wanted[at]
    width = int(counts.max())
    places = at + low if sampled.positions is None else sampled.positions[at + low]
    top_ids = result.top_ids[places, :width]
    top_ids[np.arange(width) >= counts[:, None]] = -1
    return Logprobs(
        at=at.astype(np.uint32).tobytes(),
        logprob=result.logprob[places].tobytes(),
        rank=result.rank[places].tobytes(),
        width=width,
        top_ids=top_ids.tobytes(),
        top_logprobs=result.top_logprobs[places, :width].tobytes(),
    )
