"""Fills one slot's plan columns, within their capacity."""

from __future__ import annotations

from ipc.arena import I32, I64, PlanColumns, PlanHeader
from scheduler_proc import row_setup


class PlanWriter:
    """Appends to the columns; `finish` writes the header. Rows must be written decodes first, then prefills."""

    def __init__(self, out: PlanColumns) -> None:
        self._out = out
        self.num_rows = 0
        self.num_tokens = 0
        self._num_token_ids = 0
        self._num_updates = 0
        self._setups: list[bytes] = []
        self._setup_bytes = 0

    def decodes(self, narrow: I32, starts: I64, flags: I32 | int) -> None:
        """One token for each of these rows; must come first."""
        out, count = self._out, len(narrow)
        out.row[:count] = narrow
        out.start[:count] = starts
        out.num_new[:count] = 1
        out.flags[:count] = flags
        self.num_rows = self.num_tokens = count

    def prefill(self, row: int, start: int, tokens: I32, flags: int) -> None:
        """These tokens, of positions from `start` on, for one row."""
        out, at, count = self._out, self.num_rows, len(tokens)
        out.row[at] = row
        out.start[at] = start
        out.num_new[at] = count
        out.flags[at] = flags
        out.token_ids[self._num_token_ids : self._num_token_ids + count] = tokens
        self._num_token_ids += count
        self.num_tokens += count
        self.num_rows = at + 1

    def blocks(self, rows: I64 | int, index: I64, blocks: I32) -> None:
        """New entries of block tables."""
        out, low = self._out, self._num_updates
        high = low + len(blocks)
        out.block_row[low:high] = rows
        out.block_index[low:high] = index
        out.block_id[low:high] = blocks
        self._num_updates = high

    def takes(self, num_blocks: int, setup_bytes: int) -> bool:
        """Whether a new request of this size still fits into this plan."""
        has_room = self._setup_bytes + setup_bytes <= row_setup.room(len(self._out.setup))
        return has_room and self._num_updates + num_blocks <= len(self._out.block_id)

    def setup(self, encoded: bytes) -> None:
        self._setups.append(encoded)
        self._setup_bytes += len(encoded)

    def finish(self, step: int, num_masks: int, masks_follow: bool) -> None:
        """Write setup blob and header; the plan is complete then, but for its masks if they follow."""
        size = 0
        if self._setups:
            blob = row_setup.pack_list(self._setups)
            size = len(blob)
            self._out.setup[:size] = memoryview(blob)
        header = self._out.header
        words = (step, self.num_rows, self.num_tokens, self._num_token_ids, self._num_updates, size, num_masks, masks_follow)
        header[: PlanHeader.MASKS_FOLLOW + 1] = words
