"""What a step's result changes: tokens go into the rows' histories, vectors and prompt log-probabilities to the emitter, requests end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ipc.arena import I64, ResultColumns, ResultFlag
from ipc.messages import FinishReason
from scheduler_proc.emissions import Emitter, Sampled, Segment
from scheduler_proc.flight import NO_VECTOR, Flight, Prefill
from scheduler_proc.lifecycle import Lifecycle
from scheduler_proc.request import Ending


class Results:
    """Applies one step's result at a time, in the order of the steps. A row that has left since the step was planned is passed over."""

    def __init__(self, lifecycle: Lifecycle, emitter: Emitter, vocab_size: int) -> None:
        self._lifecycle, self._rows, self._emitter = lifecycle, lifecycle.rows, emitter
        self._vocab_size = vocab_size

    def apply(self, flight: Flight, result: ResultColumns) -> Sampled:
        """Take over the result of this step; its tokens that count, to be emitted."""
        stops = self._lifecycle.stops
        sampled = self._sampled(flight, result)
        hits = stops.hits(sampled.tokens)
        if np.count_nonzero(hits) or np.count_nonzero(result.flags[: flight.num_rows]):
            sampled = self._drop_failed(sampled, result)
            hits = stops.hits(sampled.tokens)
        ends = self._advance(flight, sampled, hits)
        if ends is not None:
            self._end(sampled, ends)
        return sampled

    def _sampled(self, flight: Flight, result: ResultColumns) -> Sampled:
        """Which rows got a token that still counts."""
        columns, decodes = self._rows, flight.decodes
        positions: I64 | None = None
        segments: list[Segment] | None = None
        if decodes is None:
            rows, segments = np.empty(0, np.int64), []
            tokens = result.tokens[:0]
        else:
            rows, segments = decodes.rows, decodes.segments
            tokens = result.tokens[: len(rows)]
            if decodes.version != columns.version:
                fresh = columns.generation[rows] == decodes.generations
                if not fresh.all():
                    positions = np.flatnonzero(fresh)
                    rows, tokens, segments = rows[positions], tokens[positions], None
        if flight.prefills:
            more = [prefill for prefill in flight.prefills if self._prefilled(prefill, result)]
            if more:
                if positions is None:
                    positions = np.arange(len(rows))
                rows = np.append(rows, [prefill.row for prefill in more])
                positions = np.append(positions, [prefill.position for prefill in more])
                order = np.argsort(columns.frontend[rows], kind="stable")
                rows, positions = rows[order], positions[order]
                tokens, segments = result.tokens[positions], None
        wanted = columns.logprobs[rows] if columns.num_logprobs_rows else None
        return Sampled(rows, tokens, rows, positions, segments, wanted)

    def _prefilled(self, prefill: Prefill, result: ResultColumns) -> bool:
        """Take over what a row's prefill gave besides its token; whether it has one that counts."""
        row, request = prefill.row, prefill.request
        if self._rows.generation[row] != prefill.generation:
            return False
        self._rows.num_computed[row] = prefill.start + prefill.count
        if result.flags[prefill.position] & ResultFlag.NAN:
            self._lifecycle.fail(request)
            return False
        if prefill.num_report:
            self._emitter.prompt_logprobs(request, prefill.first_report, prefill.token_place, prefill.num_report, result)
            request.prompt_reported = prefill.first_report + prefill.num_report
        if prefill.vector != NO_VECTOR:
            self._emitter.vector(request, result.vectors[prefill.vector])
            self._lifecycle.counters.embeddings += 1
            self._lifecycle.finish(request, Ending(FinishReason.STOP))
        return prefill.sample

    def _drop_failed(self, sampled: Sampled, result: ResultColumns) -> Sampled:
        """Fail the requests whose token means nothing; the sampled rows without them."""
        places = np.arange(len(sampled.rows)) if sampled.positions is None else sampled.positions
        tokens = sampled.tokens.view(np.uint32)
        good = ((result.flags[places] & ResultFlag.NAN) == 0) & (tokens < self._vocab_size)
        if good.all():
            return sampled
        for row in sampled.rows[~good].tolist():
            request = self._rows.requests[row]
            assert request is not None
            self._lifecycle.fail(request)
        rows = sampled.rows[good]
        wanted = None if sampled.wanted is None else sampled.wanted[good]
        return Sampled(rows, sampled.tokens[good], rows, places[good], None, wanted)

    def _advance(self, flight: Flight, sampled: Sampled, hits: npt.NDArray[np.bool_]) -> list[int] | None:
        """Append the tokens to their rows' histories; places of the rows that may end now."""
        columns, rows = self._rows, sampled.rows
        known = columns.num_known[rows]
        columns.history_flat[columns.history_base[rows] + known] = sampled.tokens
        columns.num_computed[rows] = known
        sampled.index = known - columns.num_prompt[rows]
        known += 1
        columns.num_known[rows] = known
        if flight.has_last:
            hits |= known >= columns.end[rows]
        return np.flatnonzero(hits).tolist() if np.count_nonzero(hits) else None

    def _end(self, sampled: Sampled, places: list[int]) -> None:
        """End those of the rows at these places that reached a stop token or their length."""
        columns = self._rows
        for place in places:
            row, token = int(sampled.rows[place]), int(sampled.tokens[place])
            request = columns.requests[row]
            assert request is not None
            if token in request.stop_set and sampled.index[place] + 1 >= request.params.min_tokens:
                self._lifecycle.finish(request, Ending(FinishReason.STOP, token))
            elif columns.num_known[row] >= columns.end[row]:
                self._lifecycle.finish(request, Ending(FinishReason.LENGTH))
