"""Draws a token per row from the softmax of its logits after temperature, min-p, top-k and top-p, by inverse CDF.

What stays is a set that the logits alone define, so ties cannot make it depend on how it was found:
- min-p: tokens with at least min_p times the probability of the most likely one;
- top-k: tokens with a logit not below the k-th largest (more than k if it is tied; Transformers and vLLM do the same);
- top-p: of these, tokens with a logit not below that of the token at which the descending cumulative probability, renormalised over
  what min-p and top-k left, reaches top_p (Holtzman et al. 2020, "The curious case of neural text degeneration").
The token is the first, by ascending id, whose cumulative weight exceeds u times the total.

Sums are exact (exact.py) and all else is done element by element, so a row gives the same token whichever of the two ways
below is taken and whatever batch it is in: `_among_few` looks at the largest logits alone and is for rows with a small top-k; `_among_all`
weighs the whole vocabulary and sorts as little of it as top-p needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.sampling.exact import ExactWeights

FEW = (64, 512)  # top-k up to these is done on the largest logits alone
PEEK = 64  # how many of the largest logits top-p looks at first
BUCKETS = 1024  # where those do not suffice, it looks for its cut in a histogram of logits below the largest
BUCKETS_PER_NAT = 32
BLOCK = 128  # the inverse CDF goes by blocks of this many ids, then within one
CHUNK_ELEMENTS = 2**18  # rows are weighed in chunks of about this many logits, which stay in the cache


@dataclass(frozen=True)
class Wishes:
    """Columns over n rows: temperature float32, min_p float32 (0 off), top_k int64 (0 off), top_p float64 (1 off), u float64 in [0, 1)."""

    temperature: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    u: torch.Tensor

    @classmethod
    def of(cls, device: torch.device, *columns: npt.NDArray[np.generic]) -> Wishes:
        return cls(*(torch.from_numpy(column).to(device) for column in columns))

    def part(self, at: torch.Tensor | slice) -> Wishes:
        return Wishes(self.temperature[at], self.min_p[at], self.top_k[at], self.top_p[at], self.u[at])


class Drawer:
    """Draws for one vocabulary size; keeps nothing between calls."""

    def __init__(self, vocab_size: int) -> None:
        self._exact = ExactWeights(vocab_size)
        self._vocab_size = vocab_size

    def draw(self, logits: torch.Tensor, top_k: npt.NDArray[np.int64], wishes: Wishes) -> npt.NDArray[np.int64]:
        """Ids int64[n] for logits float32[n, vocab], each row with a finite maximum and no NaN. top_k: wishes.top_k on the host."""
        tokens = np.full(len(top_k), -1, np.int64)
        low = 0
        for high in FEW:
            # One more than k is looked at, to see whether the k-th is tied.
            few = np.flatnonzero((top_k > low) & (top_k <= high) & (top_k < self._vocab_size))
            if len(few):
                at = torch.from_numpy(few).to(logits.device)
                part = logits if len(few) == len(top_k) else logits[at]
                largest, ids = part.topk(int(top_k[few].max()) + 1, -1)
                tokens[few] = self._among_few(largest, ids, wishes.part(at)).cpu().numpy()
            low = high
        rest = np.flatnonzero(tokens < 0)
        rows_at_once = max(1, CHUNK_ELEMENTS // self._vocab_size)
        for start in range(0, len(rest), rows_at_once):
            some = rest[start : start + rows_at_once]
            whole = len(some) == some[-1] + 1 - some[0]
            at = slice(int(some[0]), int(some[-1]) + 1) if whole else torch.from_numpy(some).to(logits.device)
            tokens[some] = self._among_all(logits[at], wishes.part(at), top_k[some]).cpu().numpy()
        return tokens

    def _among_few(self, largest: torch.Tensor, ids: torch.Tensor, wishes: Wishes) -> torch.Tensor:
        """Ids int64[m] from the `w` largest logits float32[m, w], descending, and their ids; -1 where top-k's tie goes on past w."""
        kth = largest.gather(1, wishes.top_k[:, None] - 1)
        weights = _weigh(largest, largest[:, :1], wishes)
        weights = self._exact(weights.masked_fill_(largest < kth, 0))
        cut = _top_p_cut(largest, weights, wishes.top_p * weights.sum(-1))
        weights.masked_fill_(largest < cut, 0)
        order = ids.argsort(-1)
        cumulative = weights.gather(1, order).cumsum(-1)
        place = (cumulative <= (wishes.u * cumulative[:, -1])[:, None]).sum(-1)
        tokens = ids.gather(1, order.gather(1, place[:, None]))[:, 0]
        more_ties = (largest[:, -1] == kth[:, 0]) & (kth[:, 0] > float("-inf"))
        return torch.where(more_ties, -1, tokens)

    def _among_all(self, logits: torch.Tensor, wishes: Wishes, top_k: npt.NDArray[np.int64]) -> torch.Tensor:
        """Ids int64[m] from logits float32[m, vocab]; top_k: wishes.top_k on the host."""
        rows, vocab = logits.shape
        light = _weigh(logits, logits.amax(-1, keepdim=True), wishes)
        if top_k.any():
            largest = logits.topk(min(int(top_k.max()), vocab), -1).values
            kth = largest.gather(1, wishes.top_k.clamp(1, vocab)[:, None] - 1)
            light.masked_fill_((logits < kth) & (wishes.top_k > 0)[:, None], 0)
        blocks = -(-vocab // BLOCK)
        padded = torch.zeros((rows, blocks * BLOCK), dtype=torch.float64, device=logits.device)
        weights = padded[:, :vocab]
        weights[:] = self._exact(light)
        self._keep_top_p(logits, weights, wishes)
        return _invert(padded.view(rows, blocks, BLOCK), wishes.u)

    def _keep_top_p(self, logits: torch.Tensor, weights: torch.Tensor, wishes: Wishes) -> None:
        """Zero the weights float64[m, vocab] that top-p leaves out: by the largest logits if those suffice, else by a histogram."""
        at = torch.nonzero(wishes.top_p < 1)[:, 0]
        if not len(at):
            return
        part, heavy = logits[at], weights[at]
        wanted = wishes.top_p[at] * heavy.sum(-1)
        largest, ids = part.topk(min(PEEK, self._vocab_size), -1)
        sorted_weights = heavy.gather(1, ids)
        cut = _top_p_cut(largest, sorted_weights, wanted)
        short = torch.nonzero(sorted_weights.sum(-1) < wanted)[:, 0]
        if len(short):
            scaled = (largest[short, :1] - part[short]).div_(wishes.temperature[at][short, None])
            cut[short] = _histogram_cut(part[short], scaled, heavy[short], wanted[short])
        weights[at] = heavy.masked_fill_(part < cut, 0)


def _weigh(logits: torch.Tensor, top: torch.Tensor, wishes: Wishes) -> torch.Tensor:
    """exp((logits - top) / temperature), float32 in [0, 1], 0 where min-p leaves a token out; top is each row's largest logit."""
    weights = logits - top
    weights.div_(wishes.temperature[:, None]).exp_()
    # The most likely token weighs 1, so the weight is the probability relative to it.
    return weights.masked_fill_(weights < wishes.min_p[:, None], 0)


def _top_p_cut(largest: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The logit [m, 1] at which weights float64[m, w] of descending logits reach `wanted` float64[m]; the last if they never do."""
    place = (weights.cumsum(-1) < wanted[:, None]).sum(-1).clamp(max=weights.shape[1] - 1)
    return largest.gather(1, place[:, None])


def _histogram_cut(logits: torch.Tensor, scaled: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """As _top_p_cut, for logits float32[m, vocab] in any order: sorts only the bucket in which `wanted` is reached.

    scaled: (largest logit - logit) / temperature, overwritten. It falls as logits rise, ties included, so buckets are ranges of logits.
    """
    bucket = scaled.mul_(BUCKETS_PER_NAT).clamp_(max=BUCKETS - 1).to(torch.int64)
    mass = torch.zeros((len(logits), BUCKETS), dtype=torch.float64, device=logits.device).scatter_add_(1, bucket, weights)
    cumulative = mass.cumsum(-1)
    reached = (cumulative < wanted[:, None]).sum(-1, keepdim=True)
    missing = wanted - (cumulative - mass).gather(1, reached)[:, 0]
    inside = bucket == reached
    largest, ids = logits.masked_fill(~inside, float("-inf")).topk(int(inside.sum(-1).max()), -1)
    return _top_p_cut(largest, weights.gather(1, ids).masked_fill_(largest == float("-inf"), 0), missing)


def _invert(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """First id whose cumulative weight exceeds u times the total; weights float64[m, blocks, BLOCK], multiples of the quantum."""
    cumulative = weights.sum(-1).cumsum(-1)
    target = u * cumulative[:, -1]
    block = (cumulative <= target[:, None]).sum(-1)
    entry = torch.arange(len(u), device=weights.device)
    before = torch.where(block > 0, cumulative[entry, block - 1], 0.0)
    inner = weights[entry, block].cumsum(-1) + before[:, None]
    return block * BLOCK + (inner <= target[:, None]).sum(-1)
