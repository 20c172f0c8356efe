"""Log-probabilities of tokens under the model itself: log softmax of the raw logits, before anything a request asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.sampling.exact import ExactWeights

CHUNK_ELEMENTS = 2**20  # logits worked on at once; bounds memory, prompts have many rows


@dataclass(frozen=True)
class LogprobColumns:
    """Columns over m reported tokens.

    at int32[m]: which entry of the call each belongs to. logprob float32[m]. rank int32[m]: 1 + the number of tokens that are more likely.
    top_ids int32[m, max_logprobs], top_logprobs float32[m, max_logprobs]: most likely first, equal ones by ascending id; beyond
    what a row asked for the id is -1 and the log-probability 0. A token's float is the same in logprob and in top_logprobs.
    """

    at: npt.NDArray[np.int32]
    logprob: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]


class LogprobReporter:
    """Reports for one vocabulary size; keeps nothing between calls. Results do not depend on the batch."""

    def __init__(self, vocab_size: int, max_logprobs: int) -> None:
        self._vocab_size, self._max_logprobs = vocab_size, max_logprobs
        self._exact = ExactWeights(vocab_size)

    def report(
        self, logits: torch.Tensor, tokens: npt.NDArray[np.integer], widths: npt.NDArray[np.integer], at: npt.NDArray[np.integer]
    ) -> LogprobColumns:
        """Columns for tokens int[m] under logits float[m, vocab], with the widths[i] most likely; a token outside the vocabulary has
        log-probability -inf and rank vocab_size. Rows with NaN give NaN."""
        count = len(tokens)
        columns = LogprobColumns(
            at=at.astype(np.int32),
            logprob=np.zeros(count, np.float32),
            rank=np.zeros(count, np.int32),
            top_ids=np.full((count, self._max_logprobs), -1, np.int32),
            top_logprobs=np.zeros((count, self._max_logprobs), np.float32),
        )
        rows_at_once = max(1, CHUNK_ELEMENTS // self._vocab_size)
        for start in range(0, count, rows_at_once):
            part = slice(start, start + rows_at_once)
            self._fill(columns, part, logits[part].float(), tokens[part].astype(np.int64), widths[part])
        return columns

    def report_instead(self, columns: LogprobColumns, logits: torch.Tensor, lists: Sequence[npt.NDArray[np.int64] | None]) -> None:
        """Put the tokens lists[i] (at most max_logprobs) where columns tell of row i's most likely ones; rows of None stay."""
        for place, ids in enumerate(lists):
            if ids is not None:
                count = len(ids)
                found = self.report(logits[place : place + 1].expand(count, -1), ids, np.zeros(count, np.int64), np.arange(count))
                columns.top_ids[place, :count] = ids
                columns.top_logprobs[place, :count] = found.logprob

    def normalisers(self, logits: torch.Tensor) -> npt.NDArray[np.float64]:
        """float64[m], the logarithm of the sum of exponentials of each row of float32[m, vocab]: subtracted, it gives log-probabilities."""
        top = logits.amax(-1, keepdim=True)
        # Once per row and on the host: the same logarithm whatever the batch.
        return top[:, 0].double().cpu().numpy() + np.log(self._exact((logits - top).exp_()).sum(-1).cpu().numpy())

    def report_scores(
        self, columns: LogprobColumns, places: npt.NDArray[np.integer], scores: torch.Tensor, tokens: npt.NDArray[np.integer]
    ) -> None:
        """Put into the columns at `places` int[k] what scores float32[k, vocab] say, as they stand, of tokens int[k] and of as many of the
        highest as are listed there; what is forbidden (-inf) is left out."""
        chosen = scores.gather(1, torch.from_numpy(tokens.astype(np.int64)).to(scores.device)[:, None])
        columns.logprob[places] = chosen[:, 0].cpu().numpy()
        columns.rank[places] = 1 + (scores > chosen).sum(-1).cpu().numpy()
        asked = columns.top_ids[places] >= 0
        width = int(asked.sum(-1).max())
        if width:
            ids, values = (column.cpu().numpy() for column in most_likely(scores, width))
            listed = asked[:, :width] & (values > -np.inf)
            columns.top_ids[places, :width] = np.where(listed, ids, -1)
            columns.top_logprobs[places, :width] = np.where(listed, values, 0)

    def _fill(
        self, columns: LogprobColumns, part: slice, logits: torch.Tensor, tokens: npt.NDArray[np.int64], widths: npt.NDArray[np.integer]
    ) -> None:
        known = (tokens >= 0) & (tokens < self._vocab_size)
        chosen = torch.from_numpy(np.where(known, tokens, 0)).to(logits.device)
        value = logits.gather(1, chosen[:, None])
        rank = 1 + (logits > value).sum(-1)
        normaliser = self.normalisers(logits)
        columns.logprob[part] = np.where(known, value[:, 0].double().cpu().numpy() - normaliser, -np.inf)
        columns.rank[part] = np.where(known, rank.cpu().numpy(), self._vocab_size)
        width = min(int(widths.max()), self._max_logprobs, self._vocab_size)
        if width > 0:
            ids, largest = most_likely(logits, width)
            asked = np.arange(width) < widths[:, None]
            columns.top_ids[part, :width] = np.where(asked, ids.cpu().numpy(), -1)
            columns.top_logprobs[part, :width] = np.where(asked, largest.double().cpu().numpy() - normaliser[:, None], 0)


def most_likely(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64[m, width] and logits of the largest, descending, equal ones by ascending id (topk alone promises no order of ties)."""
    vocab = logits.shape[1]
    values, ids = logits.topk(min(width + 1, vocab), -1)
    if width < vocab:
        # Which of the tokens tied with the last place are in it, topk does not say either: these rows take the slow way.
        tied = torch.nonzero(values[:, width - 1] == values[:, width])[:, 0]
        ids = ids[:, :width]
        if len(tied):
            ids[tied] = _keys(logits[tied], torch.arange(vocab, device=logits.device)).topk(width, -1).indices
    values = logits.gather(1, ids)
    order = _keys(values, ids).argsort(-1, descending=True)
    return ids.gather(1, order), values.gather(1, order)


def _keys(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 keys, all different within a row, that sort as (logit, -id) does."""
    bits = (logits + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (ordered << 32) - ids
