"""Chooses each row's next token. The steps, in vLLM's order:

1. log-probabilities, if asked for, are those of the raw logits (RowSetup.scores: logits become log-probabilities, and what 2 makes of them
   is reported);
2. a grammar's mask, allowed ids, logit bias, bad words and min tokens (edits.py), then penalties (penalties.py);
3. temperature 0: the most likely token, the lowest id of equals;
4. else temperature, min-p, top-k, top-p and a draw (draw.py) with the random number of (seed, position) (philox.py);
5. where reasoning has used up its budget, the token that ends it (thinking.py).

A row's token is a function of its own logits, setup, history and position, bit for bit, whatever else is in the batch.
Only rows with a feature are touched by its code; a step in which no row has any is one argmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.layers.ops import Ops
from gpu_workers.sampling import edits
from gpu_workers.sampling.draw import Drawer, Wishes
from gpu_workers.sampling.logprobs import LogprobColumns, LogprobReporter
from gpu_workers.sampling.penalties import Penalties
from gpu_workers.sampling.philox import uniform
from gpu_workers.sampling.row_params import CHANGES, CHOOSES, FORBIDS, REMEMBERS, Feature, RowParams
from ipc.arena import RowSetup

__all__ = ["LogprobColumns", "Sampled", "Sampler"]

Index = npt.NDArray[np.integer]
Ids = npt.NDArray[np.int64]

UNKNOWN = -1


@dataclass(frozen=True)
class Sampled:
    """Results over the n entries of one call.

    tokens int32[n]. nan bool[n]: the entry's logits hold a NaN or +inf or are all -inf; its token is 0 and means nothing, and it
    is left out of logprobs. logprobs: None if no row asked for them.
    """

    tokens: npt.NDArray[np.int32]
    nan: npt.NDArray[np.bool_]
    logprobs: LogprobColumns | None


class Sampler:
    """Samples for the rows of one worker's batch. Not thread-safe; calls come in the order of steps."""

    def __init__(self, num_rows: int, vocab_size: int, max_logprobs: int, device: torch.device, ops: Ops | None = None) -> None:
        """max_logprobs: width of the top_* columns, and the most alternatives reported per token. ops: None for those of torch."""
        self._device, self._ops = device, ops or Ops()
        self._params = RowParams(num_rows, vocab_size, max_logprobs)
        self._penalties = Penalties(num_rows, vocab_size, device)
        self._drawer = Drawer(vocab_size)
        self._reporter = LogprobReporter(vocab_size, max_logprobs)

    def setup(self, setups: Sequence[RowSetup]) -> None:
        """(Re)define rows; nothing of a row's former request remains."""
        for each in setups:
            self._params.setup(each)
            if self._params.features[each.row] & Feature.PENALTY:
                self._penalties.setup(each.row, np.frombuffer(each.history, np.int32), each.num_prompt)
            else:
                self._penalties.release(each.row)

    def history(self, row: int) -> npt.NDArray[np.int32]:
        """The row's tokens as its setup gave them, and, for rows with bad words of several tokens, those sampled since."""
        given = self._params.history.get(row, np.zeros(0, np.int32))
        since = self._params.since.get(row)
        return np.concatenate((given, np.array(since, np.int32))) if since else given

    def prompt_logprobs_width(self, row: int) -> int:
        """How many alternatives the row wants for each prompt token; -1: no prompt log-probabilities."""
        return int(self._params.prompt_logprobs[row])

    def prompt_logprobs(self, logits: torch.Tensor, targets: Index, width: int) -> LogprobColumns:
        """Of prompt tokens `targets` int[m], each under its own logits float[m, vocab] (unchanged), with the `width` most likely.

        Memory beyond the logits is bounded, whatever m. A target outside the vocabulary has log-probability -inf.
        """
        count = len(targets)
        with _one_thread(logits):
            return self._reporter.report(logits, np.asarray(targets), np.full(count, width, np.int64), np.arange(count))

    def sample(
        self,
        logits: torch.Tensor,
        rows: Index,
        positions: npt.NDArray[np.int64],
        masked_at: Ids | None = None,
        masks: npt.NDArray[np.int32] | None = None,
    ) -> Sampled:
        """One token for each entry.

        logits: float32 or bfloat16 [n, vocab] on the sampler's device, may be overwritten. rows: int[n], all different, the entries'
        places in the batch. positions: int64[n], the absolute position of the token being sampled. masked_at int64[k], ascending: the
        entries that may only get the tokens of masks int32[k, words] (a bit per id, lowest first), whatever else their rows ask for.
        """
        with _one_thread(logits):
            return self._sample(logits, rows, np.asarray(positions), masked_at, masks)

    def _sample(
        self,
        logits: torch.Tensor,
        rows: Index,
        positions: npt.NDArray[np.int64],
        masked_at: Ids | None,
        masks: npt.NDArray[np.int32] | None,
    ) -> Sampled:
        features = self._params.features[rows]
        if masked_at is not None and len(masked_at):
            features[masked_at] |= Feature.GRAMMAR
        union = int(np.bitwise_or.reduce(features))
        best, top = self._ops.most_likely(logits)
        nan = ~np.isfinite(top)
        tokens = np.where(nan, 0, best).astype(np.int32)
        if not union:
            return Sampled(tokens, nan, None)
        features[nan] = 0
        reported = np.flatnonzero(features & Feature.LOGPROBS) if union & Feature.LOGPROBS else None
        # Taken before anything changes them; a copy, because the rows are picked by index.
        raw = logits[self._on_device(reported)] if reported is not None else None
        scored = np.flatnonzero(features & Feature.SCORES) if union & Feature.SCORES else np.zeros(0, np.int64)
        scores = None
        if union & CHOOSES:
            at = np.flatnonzero(features & CHOOSES)
            if len(at):
                if masks is not None and masked_at is not None:
                    # Entries under a grammar are among `at`, in the same order, unless their logits are not finite.
                    masks = masks[~nan[masked_at]]
                some, places = _entries(logits, at).float(), self._on_device(np.searchsorted(at, scored))
                if len(scored):
                    some[places] -= self._on_device(self._reporter.normalisers(some[places]).astype(np.float32))[:, None]
                tokens[at] = self._choose(some, rows[at], positions[at], features[at], best[at], masks)
                scores = some[places] if len(scored) else None
        if union & Feature.THINKING:
            self._end_thoughts(features, rows, tokens)
        if union & REMEMBERS:
            self._remember(features, rows, tokens)
        if reported is None or raw is None:
            return Sampled(tokens, nan, None)
        columns = self._report(raw, rows[reported], tokens[reported], reported)
        if scores is not None:
            self._reporter.report_scores(columns, np.searchsorted(reported, scored), scores, tokens[scored])
        return Sampled(tokens, nan, columns)

    def _report(self, raw: torch.Tensor, rows: Index, tokens: npt.NDArray[np.int32], at: Ids) -> LogprobColumns:
        """What the raw logits of these rows' entries `at` say of their tokens, and of those most likely or named."""
        columns = self._reporter.report(raw, tokens, self._params.logprobs[rows], at)
        if self._params.logprob_ids:
            self._reporter.report_instead(columns, raw, [self._params.logprob_ids.get(int(row)) for row in rows])
        return columns

    def _choose(
        self,
        logits: torch.Tensor,
        rows: Index,
        positions: npt.NDArray[np.int64],
        features: npt.NDArray[np.int32],
        fallback: Ids,
        masks: npt.NDArray[np.int32] | None,
    ) -> Ids:
        """Tokens int64[m] for logits float32[m, vocab], which are overwritten. fallback: each entry's most likely token. masks: of the
        entries with Feature.GRAMMAR.

        An entry whose every token is forbidden, so that no token is right, gets its most likely token under its mask, or without a mask
        its most likely allowed token, or without a list of allowed ids its most likely token.
        """
        params = self._params
        tokens, dead = fallback, np.zeros(len(rows), np.bool_)
        changed = np.flatnonzero(features & CHANGES)
        if len(changed):
            tokens = self._change(logits, rows, positions, features, fallback, masks)
            best, top = self._ops.most_likely(_entries(logits, changed))
            dead[changed] = ~np.isfinite(top)
            tokens[changed] = np.where(dead[changed], tokens[changed], best)
            lost = np.flatnonzero(tokens == UNKNOWN)
            if masks is not None and len(lost):
                # The model itself excludes all that the mask allows.
                masked = np.flatnonzero(features & Feature.GRAMMAR)
                tokens[lost] = edits.unpacked(masks[np.searchsorted(masked, lost)]).argmax(-1)
        random = np.flatnonzero((features & Feature.RANDOM != 0) & ~dead)
        if len(random):
            drawn = rows[random]
            top_k = np.where(features[random] & Feature.TOP_K, params.top_k[drawn], 0)
            u = uniform(params.seed[drawn], positions[random])
            wishes = Wishes.of(self._device, params.temperature[drawn], params.min_p[drawn], top_k, params.top_p[drawn], u)
            tokens[random] = self._drawer.draw(_entries(logits, random), top_k, wishes)
        return tokens

    def _change(
        self,
        logits: torch.Tensor,
        rows: Index,
        positions: npt.NDArray[np.int64],
        features: npt.NDArray[np.int32],
        fallback: Ids,
        masks: npt.NDArray[np.int32] | None,
    ) -> Ids:
        """Do to logits, in place, all that comes before temperature; returns what stands if nothing remains (UNKNOWN: not looked up)."""
        params, tokens = self._params, fallback.copy()
        masked = np.flatnonzero(features & Feature.GRAMMAR)
        under_mask = np.full(len(masked), UNKNOWN)
        if masks is not None and len(masked):
            edits.keep_masked(logits, masked, masks)
            # Only where something else may forbid the rest is it worth knowing now.
            more = np.flatnonzero(features[masked] & (CHANGES & ~Feature.GRAMMAR))
            if len(more):
                best, top = self._ops.most_likely(_entries(logits, masked[more]))
                under_mask[more] = np.where(np.isfinite(top), best, UNKNOWN)
        at = np.flatnonzero(features & Feature.ALLOWED)
        if len(at):
            allowed = edits.keep_allowed(logits, at, [params.allowed[int(row)] for row in rows[at]])
            tokens[at] = np.where(allowed >= 0, allowed, tokens[at])
        tokens[masked] = under_mask
        at = np.flatnonzero(features & Feature.BIAS)
        if len(at):
            edits.add_bias(logits, at, [params.bias[int(row)] for row in rows[at]])
        at = np.flatnonzero(features & FORBIDS)
        if len(at):
            entries, ids = edits.forbidden_now(params, rows[at], positions[at])
            if ids:
                edits.forbid(logits, at[entries], ids)
        at = np.flatnonzero(features & Feature.PENALTY)
        if len(at):
            penalties = (self._on_device(column[rows[at]]) for column in (params.repetition, params.presence, params.frequency))
            self._penalties.apply(logits, self._on_device(at), rows[at], *penalties)
        return tokens

    def _end_thoughts(self, features: npt.NDArray[np.int32], rows: Index, tokens: npt.NDArray[np.int32]) -> None:
        """Rows whose reasoning must end get the token that ends it, in place."""
        for entry in np.flatnonzero(features & Feature.THINKING):
            forced = self._params.thoughts[int(rows[entry])].forced
            if forced is not None:
                tokens[entry] = forced

    def _remember(self, features: npt.NDArray[np.int32], rows: Index, tokens: npt.NDArray[np.int32]) -> None:
        """Note the sampled tokens for the rows whose later tokens depend on them."""
        at = np.flatnonzero(features & Feature.PENALTY)
        if len(at):
            self._penalties.add(rows[at], tokens[at])
        for entry in np.flatnonzero(features & Feature.BAD_WORDS):
            since = self._params.since.get(int(rows[entry]))
            if since is not None:
                since.append(int(tokens[entry]))
        for entry in np.flatnonzero(features & Feature.THINKING):
            self._params.thoughts[int(rows[entry])].add(int(tokens[entry]))

    def _on_device(self, column: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(column).to(self._device)


@contextmanager
def _one_thread(logits: torch.Tensor) -> Iterator[None]:
    """Do without torch's own threads on the CPU: many small operations, each ending at a barrier, take up to a hundred times
    as long on cores that others use as well (measured: 5 ms or 700 ms for 256 x 4096), and gain little on free ones."""
    threads = torch.get_num_threads()
    if logits.device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _entries(logits: torch.Tensor, at: Ids) -> torch.Tensor:
    """Rows `at` (ascending, all different) of logits: themselves if that is all of them, else a copy."""
    return logits if len(at) == len(logits) else logits[torch.from_numpy(at).to(logits.device)]
