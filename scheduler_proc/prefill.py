"""How much of a row's known tokens the next step computes, and what it gives besides."""

from __future__ import annotations

from ipc.arena import RowFlag
from scheduler_proc.flight import NO_VECTOR, Flight, Prefill, bound_of
from scheduler_proc.kv_manager import KVManager
from scheduler_proc.plan_writer import PlanWriter
from scheduler_proc.policy import is_behind
from scheduler_proc.request import Request
from scheduler_proc.rows import Rows


class PrefillPlanner:
    """most: tokens that any plan has room for. vectors: embeddings that one result has room for."""

    def __init__(self, rows: Rows, kv: KVManager, most: int, vectors: int) -> None:
        self._rows, self._kv, self._most, self._vectors = rows, kv, most, vectors

    def plan(self, request: Request, writer: PlanWriter, flight: Flight) -> None:
        """The next chunk of a row's known tokens, as far as the budget goes."""
        columns, row = self._rows, request.row
        start = int(columns.num_scheduled[row])
        end = self._chunk_end(request, start, writer, flight)
        if end <= start:
            return
        prefill, flags = self._prefill(request, start, end, writer, flight)
        flight.prefills.append(prefill)
        writer.prefill(row, start, columns.history[row, start:end], flags)
        columns.num_scheduled[row] = end
        self._kv.publish(request, columns.block_table[row], columns.tokens(row), end, flight.step)
        if end == request.target:
            flight.has_last |= end >= columns.limit[row]
            columns.set_decoding(row, end < columns.limit[row])

    def _chunk_end(self, request: Request, start: int, writer: PlanWriter, flight: Flight) -> int:
        """The position before which the chunk ends; `start` or less: there is none in this step."""
        # A client's prompt that nobody is computed beside makes nobody wait.
        budget = flight.budget_behind if is_behind(request.priority) else flight.budget if writer.num_tokens else self._most
        end = min(request.target, start + budget - writer.num_tokens)
        if end < request.target:
            whole = end // self._kv.block_size * self._kv.block_size
            return whole if whole > start else end  # whole blocks can be shared at once
        if request.pooling and flight.num_vectors == self._vectors:
            return end - 1  # the result has no room for another vector; the last token waits for the next step
        return end

    def _prefill(self, request: Request, start: int, end: int, writer: PlanWriter, flight: Flight) -> tuple[Prefill, int]:
        """What is remembered of the chunk, and its RowFlag bits."""
        row, done = request.row, end == request.target
        first, num_report = request.prompt_reported, 0
        if request.params.prompt_logprobs is not None:
            # Entry t tells of the token after the t-th: tokens start+1 .. end.
            first = max(start + 1, request.prompt_reported)
            num_report = max(min(end + 1, request.num_prompt) - first, 0)
        flags = RowFlag.PROMPT_LOGPROBS if num_report else RowFlag(0)
        vector, samples = NO_VECTOR, done and not request.pooling
        if request.pooling:
            flags |= RowFlag.MEAN if request.pooling == "mean" else 0
            if done:
                flags |= RowFlag.EMBED
                vector, flight.num_vectors = flight.num_vectors, flight.num_vectors + 1
        elif done:
            flags |= RowFlag.SAMPLE
            if request.constraint is not None:
                flags |= RowFlag.GRAMMAR
                flight.bound.append(bound_of(self._rows, row))
        generation = int(self._rows.generation[row])
        place = writer.num_tokens + first - start - 1
        prefill = Prefill(request, row, generation, writer.num_rows, start, end - start, samples, place, first, num_report, vector)
        return prefill, int(flags)
