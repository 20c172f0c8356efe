"""Request setups as the columns that kernels_cuda.sampler reads, and what a call gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpu_workers.sampling.row_params import Feature, RowParams
from ipc.arena import RowSetup
from kernels_cuda import sampler
from tests.cuda_on_cpu.guarded import guarded


def column(values: object, dtype: torch.dtype) -> torch.Tensor:
    return guarded(torch.as_tensor(np.asarray(values)).to(dtype))


def pack_bits(ids: Sequence[int], vocab: int) -> np.ndarray:
    """int32[ceil(vocab / 32)] with the bits of these ids."""
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[np.asarray(ids, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _spans(lists: Sequence[Sequence[int]]) -> np.ndarray:
    counts = np.array([len(each) for each in lists], np.int64)
    return np.stack((np.cumsum(counts) - counts, counts), -1)


@dataclass
class Rows:
    """Columns for `setups`, which fill rows 0, 1, ... in any order; several calls continue the tallies."""

    setups: Sequence[RowSetup]
    vocab: int

    def __post_init__(self) -> None:
        count = len(self.setups)
        params = self.params = RowParams(count, self.vocab, 20)
        for setup in self.setups:
            params.setup(setup)
        self.wishes = sampler.Wishes(
            column(params.temperature, torch.float32),
            column(params.min_p, torch.float32),
            column(params.top_k, torch.int32),
            column(params.top_p, torch.float64),
            column(params.seed.view(np.int64), torch.int64),
        )
        self.allowed = sorted(params.allowed)
        self.tallies = self._tallies() if any(params.features & Feature.PENALTY) else None
        stops = [params.stop_ids.get(row, np.zeros(0, np.int64)) for row in range(count)]
        self.stops = sampler.Stops(
            column(np.concatenate(stops), torch.int32), column(_spans(stops), torch.int32), column(params.min_position, torch.int64)
        )

    def _tallies(self) -> sampler.Tallies:
        """Slots are handed out from the last to the first, so that a slot is not its row."""
        params, count = self.params, len(self.setups)
        with_penalty = [setup for setup in self.setups if params.features[setup.row] & Feature.PENALTY]
        slot_of = np.full(count, -1)
        for place, setup in enumerate(reversed(with_penalty)):
            slot_of[setup.row] = place
        tally = guarded(torch.full((len(with_penalty), self.vocab), 1 << 20, dtype=torch.int32))
        histories = [np.frombuffer(setup.history, np.int32) for setup in with_penalty]
        sampler.tally_history(
            tally,
            column([slot_of[setup.row] for setup in with_penalty], torch.int32),
            column(np.concatenate(histories), torch.int32),
            column(np.cumsum([0, *map(len, histories)]), torch.int64),
            column([setup.num_prompt for setup in with_penalty], torch.int32),
        )
        columns = (column(each, torch.float32) for each in (params.repetition, params.presence, params.frequency))
        return sampler.Tallies(tally, column(slot_of, torch.int32), *columns)

    def _edits(self) -> sampler.Edits:
        """Bias, and bad words as they stand now, as -inf."""
        added: list[dict[int, float]] = [{} for _ in self.setups]
        for row, (ids, values) in self.params.bias.items():
            added[row] = dict(zip(ids.tolist(), values.tolist()))
        for row in self.params.bad_words:
            for token in self.params.bad_words[row].forbidden(self.params.tail(row)).tolist():
                added[row][token] = -np.inf
        lists = [sorted(each) for each in added]
        values = [added[row][token] for row, ids in enumerate(lists) for token in ids]
        return sampler.Edits(
            column([token for ids in lists for token in ids], torch.int32),
            column(values, torch.float32),
            column(_spans(lists), torch.int32),
        )

    def _masks(self, masks: dict[int, np.ndarray], entries: int) -> sampler.Masks | None:
        if not masks and not self.allowed:
            return None
        words = [*masks.values(), *(pack_bits(self.params.allowed[row], self.vocab) for row in self.allowed)]
        mask_of, allowed_of = np.full(entries, -1), np.full(len(self.setups), -1)
        mask_of[list(masks)] = np.arange(len(masks))
        allowed_of[self.allowed] = len(masks) + np.arange(len(self.allowed))
        return sampler.Masks(column(np.stack(words), torch.int32), column(mask_of, torch.int32), column(allowed_of, torch.int32))

    def sample(
        self,
        logits: torch.Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        masks: dict[int, np.ndarray] | None = None,
        parts: int = 2,
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """(tokens, nan, edited logits) by the kernels, in whatever order of threads is set; masks by entry."""
        count, vocab = logits.shape
        work = sampler.Workspace(
            guarded(torch.full((count, vocab), torch.nan)), guarded(torch.full((count, parts, sampler.PARTIAL), 3, dtype=torch.int64))
        )
        tokens, nan = column([-7] * count, torch.int32), column([-7] * count, torch.int32)
        sampler.sample(
            logits,
            column(rows, torch.int32),
            column(positions, torch.int64),
            self.wishes,
            work,
            tokens,
            nan,
            masks=self._masks(masks or {}, count),
            edits=self._edits(),
            stops=self.stops,
            tallies=self.tallies,
        )
        return tokens.numpy().copy(), nan.numpy().copy(), work.edited
