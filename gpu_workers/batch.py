"""The worker's persistent batch: what it remembers of each row between steps, and the inputs of one step made from it.

Rows are places (docs/architecture.md): a request keeps one for its life, plans carry only what changed. Everything here is numpy over
whole columns; nothing loops over rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipc.arena import Dimensions, PlanColumns, PlanHeader, RowFlag
from ipc.errors import ProtocolError

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepRows:
    """What a plan itself says of a step over n scheduled rows with T new tokens in all, in row order.

    rows int64[n]: places in the batch. num_new, start, seq_lens int64[n]: new tokens, tokens before them, both together.
    flags int32[n]: RowFlag. query_starts int64[n + 1]: where each row's tokens begin. given int32: ids of the tokens of rows without
    DEVICE_TOKEN. sample_at int64[s]: which of the n rows sample. masked_at int64[k]: which of the s entries of sample_at have a mask;
    masks int32[k, words]: theirs, in the plan's memory.
    """

    rows: I64
    num_new: I64
    start: I64
    seq_lens: I64
    flags: I32
    query_starts: I64
    given: I32
    sample_at: I64
    masked_at: I64
    masks: I32

    @property
    def num_tokens(self) -> int:
        return int(self.query_starts[-1])

    @property
    def last(self) -> I64:
        """int64[n]: each row's last token among the step's."""
        return self.query_starts[1:] - 1

    @property
    def wants_all(self) -> bool:
        """Whether any row has a use for the hidden states of other tokens than its last."""
        return bool((self.flags & (RowFlag.PROMPT_LOGPROBS | RowFlag.MEAN)).any())

    @classmethod
    def of(cls, plan: PlanColumns, vocab_size: int) -> StepRows:
        """Raises ProtocolError if the plan contradicts itself or holds an id that is no token."""
        count = int(plan.header[PlanHeader.NUM_ROWS])
        num_new = plan.num_new[:count].astype(np.int64)
        start = plan.start[:count].astype(np.int64)
        flags = plan.flags[:count].copy()
        query_starts = np.zeros(count + 1, np.int64)
        np.cumsum(num_new, out=query_starts[1:])
        total = int(query_starts[-1])
        if total != plan.header[PlanHeader.NUM_TOKENS]:
            raise ProtocolError(f"the plan's rows have {total} new tokens, its header says {plan.header[PlanHeader.NUM_TOKENS]}")
        given = plan.token_ids[: int(plan.header[PlanHeader.NUM_TOKEN_IDS])]
        missing = total - int(num_new[(flags & RowFlag.DEVICE_TOKEN) != 0].sum())
        if missing != len(given):
            raise ProtocolError(f"the plan gives {len(given)} token ids for {missing} tokens")
        if given.size and (given.min() < 0 or given.max() >= vocab_size):
            raise ProtocolError(f"the plan holds a token id outside 0 .. {vocab_size - 1}")
        sample_at = np.flatnonzero(flags & RowFlag.SAMPLE)
        masked_at = np.flatnonzero(flags[sample_at] & RowFlag.GRAMMAR)
        num_masks = int(plan.header[PlanHeader.NUM_MASKS])
        if num_masks != len(masked_at) or num_masks != np.count_nonzero(flags & RowFlag.GRAMMAR):
            raise ProtocolError(f"the plan gives {num_masks} masks for {len(masked_at)} rows that sample under one")
        masks = plan.masks[:num_masks]
        rows = plan.row[:count].astype(np.int64)
        return cls(rows, num_new, start, start + num_new, flags, query_starts, given, sample_at, masked_at, masks)


@dataclass(frozen=True, slots=True)
class StepInputs(StepRows):
    """A step with its tokens. row_of_token int64[T]: index into rows. token_ids, positions, slots int64[T].
    block_tables int32[n, blocks_per_row]."""

    row_of_token: I64
    token_ids: I64
    positions: I64
    slots: I64
    block_tables: I32


class Batch:
    """block_tables int32[rows, blocks_per_row], last_token int64[rows]: the token last sampled for each row."""

    def __init__(self, dimensions: Dimensions, block_size: int, vocab_size: int) -> None:
        self.block_tables = np.zeros((dimensions.rows, dimensions.blocks_per_row), np.int32)
        self.last_token = np.zeros(dimensions.rows, np.int64)
        self._block_size = block_size
        self._vocab_size = vocab_size

    def update(self, plan: PlanColumns) -> None:
        """Apply the plan's block-table deltas."""
        count = int(plan.header[PlanHeader.NUM_BLOCK_UPDATES])
        if count:
            self.block_tables[plan.block_row[:count], plan.block_index[:count]] = plan.block_id[:count]

    def inputs(self, plan: PlanColumns) -> StepInputs:
        """The step's columns. Raises ProtocolError if the plan contradicts itself or holds an id that is no token."""
        step = StepRows.of(plan, self._vocab_size)
        row_of_token = np.repeat(np.arange(len(step.rows)), step.num_new)
        positions = np.arange(len(row_of_token)) + (step.start - step.query_starts[:-1])[row_of_token]
        tables = self.block_tables[step.rows]
        block, offset = np.divmod(positions, self._block_size)
        return StepInputs(
            *(getattr(step, name) for name in StepRows.__slots__),
            row_of_token=row_of_token,
            token_ids=self._token_ids(step, row_of_token),
            positions=positions,
            slots=tables[row_of_token, block].astype(np.int64) * self._block_size + offset,
            block_tables=tables,
        )

    def remember(self, rows: I64, tokens: npt.NDArray[np.integer]) -> None:
        """Keep the tokens just sampled for `rows`, for plans that say DEVICE_TOKEN."""
        self.last_token[rows] = tokens

    def _token_ids(self, step: StepRows, row_of_token: I64) -> I64:
        from_device: Bool = (step.flags & RowFlag.DEVICE_TOKEN) != 0
        ids = np.empty(len(row_of_token), np.int64)
        of_device = from_device[row_of_token]
        ids[~of_device] = step.given
        ids[of_device] = self.last_token[step.rows[row_of_token[of_device]]]
        return ids
