"""Vectors of whole prompts: the last token's hidden state, or the mean over all tokens'.

The mean is kept as a sum from chunk to chunk; a row that begins at token 0 begins a new one, as after a preemption.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gpu_workers.batch import I64, StepRows
from gpu_workers.models.decoder import Decoder
from ipc.arena import RowFlag
from ipc.errors import ProtocolError

POOLS = RowFlag.EMBED | RowFlag.MEAN


class Pooler:
    """One rank's sums, float32[hidden] by row, of the rows that compute a mean. index: brings places to where the hidden states are."""

    def __init__(self, model: Decoder, index: Callable[[I64], torch.Tensor]) -> None:
        self._model, self._index = model, index
        self._sums: dict[int, torch.Tensor] = {}

    def pool(self, step: StepRows, hidden: torch.Tensor, last: torch.Tensor) -> tuple[I64, torch.Tensor]:
        """The entries of step.rows that get a vector now, and the vectors float32[k, hidden].

        hidden, last: hidden states of the step's tokens (looked at for means) and of each row's last. Raises ProtocolError for a mean
        without a beginning.
        """
        for at in np.flatnonzero(step.flags & RowFlag.MEAN).tolist():
            self._add(int(step.rows[at]), bool(step.start[at] == 0), hidden[int(step.query_starts[at]) : int(step.query_starts[at + 1])])
        ends: I64 = np.flatnonzero(step.flags & RowFlag.EMBED)
        vectors = self._model.final_norm(last[self._index(ends)]).float()
        for place, at in enumerate(ends.tolist()):
            if step.flags[at] & RowFlag.MEAN:
                vectors[place] = self._sums.pop(int(step.rows[at])) / int(step.seq_lens[at])
        return ends, vectors

    def _add(self, row: int, first: bool, hidden: torch.Tensor) -> None:
        total = self._model.final_norm(hidden).float().sum(0)
        if not first:
            if row not in self._sums:
                raise ProtocolError(f"row {row} goes on with a mean that it never began")
            total += self._sums[row]
        self._sums[row] = total
