"""Repetition, presence and frequency penalties, for the rows that use them.

Repetition as in Keskar et al. 2019 (CTRL), section 4.1, with the sign rule of the Transformers library, over prompt and output;
presence and frequency as OpenAI's API defines them, over the output alone.

State per row is the list of distinct tokens it has and how often each came, never a column over the vocabulary: a step costs what
the histories cost, whatever the vocabulary. Rows hold a slot of the pool while they use penalties; the last to leave frees it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_FIRST_SLOTS = 4
_FIRST_WIDTH = 64


class Penalties:
    """Tallies of rows; a tally is 2 * (times in the output) + (1 if in the prompt)."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._slot = np.full(num_rows, -1, np.int64)
        self._clear()

    def _clear(self) -> None:
        self._free: list[int] = []
        self._ids = torch.zeros((0, _FIRST_WIDTH), dtype=torch.int64, device=self._device)
        self._tally = torch.zeros((0, _FIRST_WIDTH), dtype=torch.int64, device=self._device)
        self._used = torch.zeros(0, dtype=torch.int64, device=self._device)
        # At least _used, known without asking the device: how wide a step must look.
        self._bound = np.zeros(0, np.int64)

    def setup(self, row: int, history: npt.NDArray[np.int32], num_prompt: int) -> None:
        """Start (again) from the row's whole history."""
        if self._slot[row] < 0:
            if not self._free:
                self._grow(max(_FIRST_SLOTS, 2 * len(self._bound)), self._ids.shape[1])
            self._slot[row] = self._free.pop()
        slot = self._slot[row]
        tokens = history.astype(np.int64)
        output = tokens[num_prompt:]
        inside = (tokens >= 0) & (tokens < self._vocab_size)
        ids = np.unique(tokens[inside])
        tally = np.isin(ids, tokens[:num_prompt]).astype(np.int64)
        np.add.at(tally, np.searchsorted(ids, output[inside[num_prompt:]]), 2)
        self._grow(len(self._bound), len(ids))
        self._ids[slot, : len(ids)] = torch.from_numpy(ids).to(self._device)
        self._tally[slot, : len(ids)] = torch.from_numpy(tally).to(self._device)
        # An empty row is padded with its first place (see apply): a token with a tally of 0, to which nothing is done.
        self._ids[slot, len(ids) :] = 0
        self._tally[slot, len(ids) :] = 0
        self._used[slot] = self._bound[slot] = len(ids)

    def release(self, row: int) -> None:
        """The row uses no penalties (any more)."""
        slot = self._slot[row]
        if slot >= 0:
            self._slot[row] = -1
            self._free.append(int(slot))
            if len(self._free) == len(self._bound):
                self._clear()

    def apply(
        self,
        logits: torch.Tensor,
        at: torch.Tensor,
        rows: npt.NDArray[np.integer],
        repetition: torch.Tensor,
        presence: torch.Tensor,
        frequency: torch.Tensor,
    ) -> None:
        """Change logits float32[m, vocab] in place at entries at int64[k], which are of `rows` int[k]; the penalties are float32[k]."""
        slots, width = self._places(rows)
        ids, tally = self._ids[slots, :width], self._tally[slots, :width]
        unused = torch.arange(width, device=self._device) >= self._used[slots, None]
        # Places past the end repeat the first, so that every write to one logit writes the same value.
        ids, tally = torch.where(unused, ids[:, :1], ids), torch.where(unused, tally[:, :1], tally)
        before = logits[at[:, None], ids]
        times = tally >> 1
        factor = torch.where(tally > 0, repetition[:, None], 1.0)
        after = torch.where(before > 0, before / factor, before * factor)
        after = after - frequency[:, None] * times - presence[:, None] * (times > 0)
        logits[at[:, None], ids] = after

    def add(self, rows: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer]) -> None:
        """Each of `rows` int[k], all different, got one more output token."""
        slots, width = self._places(rows)
        if width == self._ids.shape[1]:
            self._grow(len(self._bound), min(width + 1, self._vocab_size))
        slots_host = self._slot[rows]
        new = torch.from_numpy(tokens.astype(np.int64)).to(self._device)
        used = self._used[slots]
        known = (self._ids[slots, :width] == new[:, None]) & (torch.arange(width, device=self._device) < used[:, None])
        found = known.any(-1)
        place = torch.where(found, known.to(torch.int8).argmax(-1), used)
        self._ids[slots, place] = new
        self._tally[slots, place] += 2
        self._used[slots] = used + ~found
        self._bound[slots_host] += 1

    def _places(self, rows: npt.NDArray[np.integer]) -> tuple[torch.Tensor, int]:
        """Slots of these rows, on the device, and how many places of theirs can be in use (at least one)."""
        slots = self._slot[rows]
        width = min(max(1, int(self._bound[slots].max())), self._ids.shape[1])
        return torch.from_numpy(slots).to(self._device), width

    def _grow(self, slots: int, width: int) -> None:
        """Room for this many slots of at least this many distinct tokens."""
        had_slots, had_width = self._ids.shape
        if slots == had_slots and width <= had_width:
            return
        room = max(had_width, min(self._vocab_size, 2 * width)) if width > had_width else had_width
        for name in ("_ids", "_tally"):
            grown = torch.zeros((slots, room), dtype=torch.int64, device=self._device)
            grown[:had_slots, :had_width] = getattr(self, name)
            setattr(self, name, grown)
        used = torch.zeros(slots, dtype=torch.int64, device=self._device)
        used[:had_slots] = self._used
        self._used = used
        self._bound = np.concatenate((self._bound, np.zeros(slots - had_slots, np.int64)))
        self._free += range(slots - 1, had_slots - 1, -1)
