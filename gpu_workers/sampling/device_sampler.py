"""The sampler on a GPU: gpu_workers.sampler's choices by the kernels of kernels_cuda.sampler, without a word from the host.

What rows ask for is kept in RowParams, as on the CPU, and copied to the device as columns when a setup changes them. A draw uses the same
random number and the same exact sums as on the CPU; what may differ is the last bit of an exponential.

Three features need the host. Bad words of several tokens and limits of reasoning depend on the tokens sampled last, which the host learns
a step late: `learn` must have been told all of a row's tokens before it is sampled again, so the runner waits for the step before
(`needs_history`). And rows with penalties hold a tally over the vocabulary each, whose memory grows when more of them run at once than ever
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.cuda.layout import pack, packed_size
from gpu_workers.sampling.row_params import Feature, Ids, RowParams
from ipc.arena import RowSetup
from kernels_cuda import logprobs as logprobs_kernel
from kernels_cuda import sampler as kernels

Index = npt.NDArray[np.int64]

_FIRST_SLOTS = 4
_FIRST_MASKS = 4
# Logits that are edited at once; bounds the workspace, whatever the batch.
ENTRIES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Entries:
    """The n entries of one call. rows int64[n]: places in the batch, on the host. On the device: row int32[n], the same;
    positions int64[n]; mask_of int32[n]: each entry's among the step's masks, or -1. num_masks: how many of those there are."""

    rows: Index
    row: torch.Tensor
    positions: torch.Tensor
    mask_of: torch.Tensor
    num_masks: int


@dataclass(frozen=True, slots=True)
class DeviceLogprobs:
    """Columns over m reported tokens, on the device; meaning as in gpu_workers.sampling.logprobs.LogprobColumns."""

    logprob: torch.Tensor
    rank: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


class DeviceSampler:
    """Samples for the rows of one worker's batch. Calls come in the order of steps, on one stream.

    upload: copies host columns to the device, in that stream's order, and returns them there.
    """

    def __init__(
        self, num_rows: int, vocab_size: int, max_logprobs: int, max_masks: int, device: torch.device, blocks: int,
        upload: Callable[[Mapping[str, npt.NDArray[np.generic]]], dict[str, torch.Tensor]],
    ) -> None:  # fmt: skip
        self._params = RowParams(num_rows, vocab_size, max_logprobs)
        self._vocab_size, self._max_logprobs, self._device, self._upload = vocab_size, max_logprobs, device, upload
        self._blocks, self._max_masks = blocks, max_masks
        self._columns: dict[str, torch.Tensor] = {}
        self._stale = True  # the device's columns are not the host's
        # Of the entries of the last `sample` whose rows have Feature.SCORES, in order.
        self._scores: list[torch.Tensor] = []
        entries = min(num_rows, ENTRIES_AT_ONCE)
        self._edited = torch.empty(entries, vocab_size, dtype=torch.float32, device=device)
        self._partial = torch.empty(entries * kernels.parts_for(1, vocab_size, blocks) * kernels.PARTIAL, dtype=torch.int64, device=device)
        self._slot_of = np.full(num_rows, -1, np.int32)
        self._free_slots: list[int] = []
        self._tally = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        # The step's masks first, then those of rows with allowed ids.
        self._allowed_of = np.full(num_rows, -1, np.int32)
        self._free_masks: list[int] = []
        self._masks = torch.zeros((max_masks, -(-vocab_size // 32)), dtype=torch.int32, device=device)

    def setup(self, setups: Sequence[RowSetup]) -> None:
        """(Re)define rows; nothing of a row's former request remains."""
        for each in setups:
            self._params.setup(each)
            self._release(each.row)
        features = self._params.features
        self._start_tallies([each for each in setups if features[each.row] & Feature.PENALTY])
        self._start_allowed([each.row for each in setups if features[each.row] & Feature.ALLOWED])
        self._stale = self._stale or bool(setups)

    def history(self, row: int) -> npt.NDArray[np.int32]:
        """The row's tokens as its setup gave them."""
        return self._params.history.get(row, np.zeros(0, np.int32))

    def prompt_logprobs_width(self, row: int) -> int:
        """How many alternatives the row wants for each prompt token; -1: no prompt log-probabilities."""
        return int(self._params.prompt_logprobs[row])

    def needs_history(self, rows: Index) -> npt.NDArray[np.bool_]:
        """Which of these rows cannot be sampled before the host knows their last token."""
        since, thoughts = self._params.since, self._params.thoughts
        if not since and not thoughts:
            return np.zeros(len(rows), np.bool_)
        return np.array([row in since or row in thoughts for row in rows.tolist()], np.bool_)

    def learn(self, rows: Index, tokens: npt.NDArray[np.int32]) -> None:
        """Tokens that were sampled for rows; those that need no history are passed over."""
        for row, token in zip(rows.tolist(), tokens.tolist()):
            if token < 0:
                continue
            since, thoughts = self._params.since.get(row), self._params.thoughts.get(row)
            if since is not None:
                since.append(token)
                self._stale = True
            if thoughts is not None:
                thoughts.add(token)

    def put_masks(self, masks: npt.NDArray[np.int32]) -> None:
        """Copy the step's masks int32[k, words], which lie in page-locked memory, to where `sample` reads them."""
        self._masks[: len(masks)].copy_(torch.from_numpy(masks), non_blocking=True)

    def sample(self, logits: torch.Tensor, entries: Entries) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens and nan int32[n] for logits [n, vocab], which stay as they are; nan is 1 where the token means nothing."""
        if logits.dtype == torch.float16:
            logits = logits.float()
        self._refresh()
        scored = np.flatnonzero(self._params.features[entries.rows] & Feature.SCORES)
        self._scores = []
        if len(scored):
            logits = self._with_logprobs(logits, scored)
        count, at_once = len(entries.rows), len(self._edited)
        tokens, nan = torch.empty((2, count), dtype=torch.int32, device=self._device)
        for first in range(0, count, at_once):
            some = slice(first, min(first + at_once, count))
            self._sample(logits[some], entries, some, tokens[some], nan[some])
            self._scores += [self._edited[entry - first].clone() for entry in scored.tolist() if some.start <= entry < some.stop]
        self._end_thoughts(entries.rows, tokens)
        return tokens, nan

    def reported(self, rows: Index) -> tuple[Index, npt.NDArray[np.int32]]:
        """Which entries of `rows` ask for log-probabilities, and of how many alternatives."""
        at = np.flatnonzero(self._params.features[rows] & Feature.LOGPROBS)
        return at, self._params.logprobs[rows[at]]

    def report(
        self,
        logits: torch.Tensor,
        at: npt.NDArray[np.integer],
        tokens: torch.Tensor,
        widths: npt.NDArray[np.integer],
        rows: Index | None = None,
    ) -> DeviceLogprobs:
        """Log-probabilities of tokens int32[m], on the device, under rows `at` of the raw logits, with the widths[i] most likely, or with
        the tokens that rows[i] of the batch names instead, or as the scores of the step just sampled where rows[i] wants these."""
        if logits.dtype == torch.float16:
            logits = logits.float()
        count, lists = len(at), self._upload({"at": at.astype(np.int32), "widths": widths.astype(np.int32)})
        columns = DeviceLogprobs(
            *(torch.empty(count, dtype=dtype, device=self._device) for dtype in (torch.float32, torch.int32)),
            *(torch.empty(count, self._max_logprobs, dtype=dtype, device=self._device) for dtype in (torch.int32, torch.float32)),
        )
        logprobs_kernel.report_logprobs(
            logits, lists["at"], tokens, lists["widths"], columns.logprob, columns.rank, columns.top_ids, columns.top_logprobs
        )
        named = self._params.logprob_ids
        for place, row in enumerate(rows.tolist() if rows is not None and named else ()):
            if row in named:
                ids = self._upload({"ids": named[row].astype(np.int32)})["ids"]
                count = len(ids)
                found = self.report(logits, np.full(count, at[place]), ids, np.zeros(count, np.int32))
                columns.top_ids[place, :count], columns.top_logprobs[place, :count] = ids, found.logprob
        scored = np.flatnonzero(self._params.features[rows] & Feature.SCORES) if rows is not None and self._scores else ()
        if len(scored):
            self._report_scores(columns, scored, tokens, widths)
        return columns

    def _with_logprobs(self, logits: torch.Tensor, at: Index) -> torch.Tensor:
        """A float32 copy of logits, in which rows `at` are log-probabilities."""
        copy, places = logits.to(torch.float32, copy=True), self._upload({"at": at})["at"]
        chosen = copy[places]
        best = chosen.argmax(-1, keepdim=True)
        found = self.report(logits, at, best[:, 0].to(torch.int32), np.zeros(len(at), np.int32))
        copy[places] = chosen + (found.logprob[:, None] - chosen.gather(1, best))
        return copy

    def _report_scores(self, columns: DeviceLogprobs, at: Index, tokens: torch.Tensor, widths: npt.NDArray[np.integer]) -> None:
        """Put what the last step's scores say into columns at `at`; see LogprobReporter.report_scores."""
        scores, places = torch.stack(self._scores), self._upload({"at": at})["at"]
        chosen = tokens[places]
        found = self.report(scores, np.arange(len(at)), chosen, widths[at])
        values = scores.gather(1, found.top_ids.clamp(min=0).long())
        listed = (found.top_ids >= 0) & (values > -torch.inf)
        columns.logprob[places] = scores.gather(1, chosen[:, None].long())[:, 0]
        columns.rank[places] = found.rank
        columns.top_ids[places] = torch.where(listed, found.top_ids, -1)
        columns.top_logprobs[places] = torch.where(listed, values, 0.0)

    def _end_thoughts(self, rows: Index, tokens: torch.Tensor) -> None:
        """Rows whose reasoning must end get the token that ends it, in place."""
        thoughts = self._params.thoughts
        due = [(entry, thoughts[row].forced) for entry, row in enumerate(rows.tolist()) if row in thoughts] if thoughts else []
        forced = [(entry, token) for entry, token in due if token is not None]
        if forced:
            lists = self._upload({name: np.array(column) for name, column in zip(("at", "tokens"), zip(*forced))})
            tokens[lists["at"]] = lists["tokens"].to(torch.int32)

    def _sample(self, logits: torch.Tensor, entries: Entries, some: slice, tokens: torch.Tensor, nan: torch.Tensor) -> None:
        count, vocab = logits.shape
        columns, params = self._columns, self._params
        features = int(np.bitwise_or.reduce(params.features[entries.rows[some]]))
        parts = kernels.parts_for(count, vocab, self._blocks)
        partial = self._partial[: count * parts * kernels.PARTIAL].view(count, parts, kernels.PARTIAL)
        masks = edits = stops = tallies = None
        if entries.num_masks or features & Feature.ALLOWED:
            allowed = columns["allowed_of"] if features & Feature.ALLOWED else None
            masks = kernels.Masks(self._masks, entries.mask_of[some] if entries.num_masks else None, allowed)
        if features & (Feature.BIAS | Feature.BAD_WORDS):
            edits = kernels.Edits(columns["edit_ids"], columns["edit_values"], columns["edit_spans"])
        if features & Feature.MIN_TOKENS:
            stops = kernels.Stops(columns["stop_ids"], columns["stop_spans"], columns["min_position"])
        if features & Feature.PENALTY:
            penalties = (columns[name] for name in ("repetition", "presence", "frequency"))
            tallies = kernels.Tallies(self._tally, columns["slot_of"], *penalties)
        wishes = kernels.Wishes(*(columns[name] for name in ("temperature", "min_p", "top_k", "top_p", "seed")))
        kernels.sample(
            logits, entries.row[some], entries.positions[some], wishes, kernels.Workspace(self._edited, partial), tokens, nan,
            masks=masks, edits=edits, stops=stops, tallies=tallies,
        )  # fmt: skip

    def _refresh(self) -> None:
        """Copy what rows ask for to the device if it has changed."""
        if not self._stale:
            return
        self._stale, params = False, self._params
        edits = self._edit_lists()
        # The kernel keeps the edited logits of rows that draw.
        temperature = np.where(params.features & Feature.SCORES, np.float32(1), params.temperature)
        stops = {row: (ids, np.zeros(0, np.float32)) for row, ids in params.stop_ids.items()}
        edit_spans, edit_ids, edit_values = self._spans(edits)
        stop_spans, stop_ids, _ = self._spans(stops)
        self._columns = self._upload(
            {
                "temperature": temperature, "min_p": params.min_p, "top_k": params.top_k.astype(np.int32), "top_p": params.top_p,
                "seed": params.seed.view(np.int64), "min_position": params.min_position, "repetition": params.repetition,
                "presence": params.presence, "frequency": params.frequency, "slot_of": self._slot_of, "allowed_of": self._allowed_of,
                "edit_spans": edit_spans, "edit_ids": edit_ids, "edit_values": edit_values, "stop_spans": stop_spans, "stop_ids": stop_ids,
            }
        )  # fmt: skip

    def _edit_lists(self) -> dict[int, tuple[Ids, npt.NDArray[np.float32]]]:
        """By row what is added to which logits: bias, and minus infinity for words that may not come now."""
        params, lists = self._params, dict(self._params.bias)
        for row, words in params.bad_words.items():
            ids, values = lists.get(row, (np.zeros(0, np.int64), np.zeros(0, np.float32)))
            forbidden = words.forbidden(params.tail(row))
            kept = ~np.isin(ids, forbidden)
            lists[row] = (
                np.concatenate((ids[kept], forbidden)),
                np.concatenate((values[kept], np.full(len(forbidden), -np.inf, np.float32))),
            )
        return lists

    def _spans(
        self, lists: Mapping[int, tuple[Ids, npt.NDArray[np.float32]]]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(start, count) by row into ids, ascending and different within a row, and their values."""
        spans = np.zeros((len(self._slot_of), 2), np.int32)
        ids: list[Ids] = [np.zeros(0, np.int64)]
        values: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
        start = 0
        for row, (some, theirs) in lists.items():
            distinct, first = np.unique(some, return_index=True)
            spans[row] = start, len(distinct)
            start += len(distinct)
            ids.append(distinct)
            values.append(theirs[first] if len(theirs) else np.zeros(len(distinct), np.float32))
        return spans, np.concatenate(ids).astype(np.int32), np.concatenate(values)

    def _release(self, row: int) -> None:
        for places, free in ((self._slot_of, self._free_slots), (self._allowed_of, self._free_masks)):
            if places[row] >= 0:
                free.append(int(places[row]))
                places[row] = -1

    def _start_tallies(self, setups: Sequence[RowSetup]) -> None:
        if not setups:
            return
        if len(setups) > len(self._free_slots):
            self._tally = self._grown(self._tally, self._free_slots, len(setups), _FIRST_SLOTS)
        for each in setups:
            self._slot_of[each.row] = self._free_slots.pop()
        histories = [np.frombuffer(each.history, np.int32) for each in setups]
        lists = self._upload(
            {
                "slots": self._slot_of[[each.row for each in setups]],
                "tokens": np.concatenate(histories),
                "starts": np.cumsum([0, *map(len, histories)]).astype(np.int64),
                "num_prompt": np.array([each.num_prompt for each in setups], np.int32),
            }
        )
        kernels.tally_history(self._tally, lists["slots"], lists["tokens"], lists["starts"], lists["num_prompt"])

    def _start_allowed(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        if len(rows) > len(self._free_masks):
            self._masks = self._grown(self._masks, self._free_masks, len(rows), _FIRST_MASKS)
        words = np.zeros((len(rows), self._masks.shape[1] * 32), np.uint8)
        for place, row in enumerate(rows):
            self._allowed_of[row] = self._free_masks.pop()
            words[place, self._params.allowed[row]] = 1
        packed = np.packbits(words, axis=1, bitorder="little").view(np.int32)
        lists = self._upload({"at": self._allowed_of[rows].astype(np.int64), "words": packed})
        self._masks[lists["at"]] = lists["words"]

    def _grown(self, table: torch.Tensor, free: list[int], wanted: int, least: int) -> torch.Tensor:
        """A copy of the table with room for `wanted` rows more, twice its size or so; the new places become free."""
        had = len(table)
        room = max(had + wanted, 2 * had if had >= least else least)
        grown = torch.zeros((room, table.shape[1]), dtype=table.dtype, device=self._device)
        grown[:had].copy_(table)
        free.extend(range(room - 1, had - 1, -1))
        return grown


def uploader(pinned: Callable[[int], torch.Tensor], device: torch.device) -> Callable[[Mapping[str, np.ndarray]], dict[str, torch.Tensor]]:
    """Copies columns to the device in one piece, in the current stream's order."""

    def upload(columns: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        host = pinned(packed_size(columns))
        layout = pack(columns, host)
        return layout.views(host.to(device, non_blocking=True))

    return upload
