"""The running batch as a struct of arrays: one entry per row, so that a decode step is a handful of vector operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ipc.arena import I32, I64
from scheduler_proc.request import Request

NO_LOGPROBS = -1


class Rows:
    """Columns over `num_rows` rows; only the scheduler writes them.

    generation: grows when a row is freed, so that a late result is never taken for its successor's. num_scheduled: tokens in plans
    so far. num_computed: tokens whose step has been applied. num_known: tokens whose id is known here (history[row, :num_known]).
    limit: num_scheduled beyond which nothing need be computed (end - 1). capacity: tokens the row's blocks hold.
    decoding: whether the next plan gives it one token, the one sampled last. constrained: whether it is under a grammar.
    version: grows whenever a row starts or stops decoding.
    """

    def __init__(self, num_rows: int, max_model_len: int, blocks_per_row: int) -> None:
        def zeros() -> I64:
            return np.zeros(num_rows, np.int64)

        self.num_rows = num_rows
        self.generation = zeros()
        self.num_prompt, self.num_scheduled, self.num_computed, self.num_known = zeros(), zeros(), zeros(), zeros()
        self.end, self.limit, self.capacity = zeros(), zeros(), zeros()
        self.frontend, self.handle = zeros(), zeros()
        self.logprobs = np.full(num_rows, NO_LOGPROBS, np.int64)
        self.decoding: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        self.constrained: npt.NDArray[np.bool_] = np.zeros(num_rows, np.bool_)
        # Not filled: memory is taken only as rows grow into it.
        self.history: I32 = np.empty((num_rows, max_model_len), np.int32)
        self.history_flat: I32 = self.history.reshape(-1)
        self.history_base: I64 = np.arange(num_rows, dtype=np.int64) * max_model_len
        self.block_table: I32 = np.empty((num_rows, blocks_per_row), np.int32)
        self.requests: list[Request | None] = [None] * num_rows
        self.num_logprobs_rows = 0
        self.version = 0
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def occupy(self, request: Request, num_cached: int, num_blocks: int, block_size: int) -> int:
        """Give the request a row; its tokens become the row's history."""
        row = self._free.pop()
        known = len(request.tokens)
        self.requests[row] = request
        self.num_prompt[row] = request.num_prompt
        self.num_scheduled[row] = self.num_computed[row] = num_cached
        self.num_known[row] = known
        self.end[row], self.limit[row] = request.end, request.end - 1
        self.capacity[row] = num_blocks * block_size
        self.frontend[row], self.handle[row] = request.frontend.number, request.handle
        self.history[row, :known] = request.tokens
        self.constrained[row] = request.constraint is not None
        if request.params.num_logprobs is not None:
            self.logprobs[row] = request.params.num_logprobs
            self.num_logprobs_rows += 1
        request.row, request.target = row, known
        return row

    def set_decoding(self, rows: I64 | int, decoding: bool) -> None:
        """These rows start or stop to take a token in every plan."""
        self.decoding[rows] = decoding
        self.version += 1

    def free(self, row: int) -> None:
        """Take the row from its request, whose tokens are its own again."""
        request = self.requests[row]
        assert request is not None
        request.tokens = self.history[row, : self.num_known[row]].copy()
        request.row = -1
        self.requests[row] = None
        self.decoding[row] = False
        self.generation[row] += 1
        self.version += 1
        if self.logprobs[row] != NO_LOGPROBS:
            self.logprobs[row] = NO_LOGPROBS
            self.num_logprobs_rows -= 1
        self._free.append(row)

    def tokens(self, row: int) -> memoryview:
        """The row's history as bytes, without a copy."""
        data: memoryview = self.history[row].data
        return data.cast("B")

    def validate(self) -> None:
        """Raise AssertionError unless free list, requests and columns agree."""
        free = set(self._free)
        assert len(free) == len(self._free), "a row is twice on the free list"
        num_logprobs = 0
        for row, request in enumerate(self.requests):
            assert (request is None) == (row in free), f"row {row} is neither free nor occupied, or both"
            if request is None:
                assert not self.decoding[row]
                continue
            assert request.row == row, f"row {row} and its request disagree"
            scheduled, computed, known = (int(column[row]) for column in (self.num_scheduled, self.num_computed, self.num_known))
            assert computed <= scheduled <= self.limit[row], f"row {row}: {computed} computed, {scheduled} scheduled"
            assert self.num_prompt[row] <= known <= self.end[row], f"row {row}: {known} tokens known"
            assert scheduled <= self.capacity[row], f"row {row} computes beyond its blocks"
            assert self.end[row] == request.end and self.num_prompt[row] == request.num_prompt
            assert self.frontend[row] == request.frontend.number and self.handle[row] == request.handle
            assert bool(self.constrained[row]) == (request.constraint is not None)
            decodes = scheduled >= request.target and scheduled < self.limit[row]
            assert bool(self.decoding[row]) == decodes, f"row {row}: decoding flag"
            num_logprobs += int(self.logprobs[row] != NO_LOGPROBS)
        assert num_logprobs == self.num_logprobs_rows
