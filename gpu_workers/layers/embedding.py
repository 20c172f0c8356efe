"""The token embedding and the logits head, split over ranks by vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from gpu_workers.collectives import Collectives
from gpu_workers.weights.part import Part


class VocabParallelEmbedding:
    """weight [vocab / ranks, hidden]; ids [T] to [T, hidden] on every rank."""

    def __init__(self, vocab_size: int, hidden_size: int, ranks: Collectives, dtype: torch.dtype, device: torch.device) -> None:
        self._ranks = ranks
        self._vocab_size = vocab_size
        self._length = ranks.share(vocab_size, "vocab_size")
        self._start = ranks.rank * self._length
        self.weight = torch.empty(self._length, hidden_size, dtype=dtype, device=device)

    def parts(self) -> Iterator[Part]:
        yield Part("embedding.weight", (self._vocab_size, self.weight.shape[1]), self.weight, 0, self._start)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        if self._ranks.size == 1:
            return F.embedding(ids, self.weight)
        local = ids - self._start
        elsewhere = (local < 0) | (local >= self._length)
        embedded = F.embedding(local.masked_fill(elsewhere, 0), self.weight).masked_fill_(elsewhere[:, None], 0)
        return self._ranks.all_reduce(embedded)
