"""`PagedToy`, a worker's arithmetic without a model.

It keeps token ids in KV slots where a model keeps keys and values, reads each row's whole context back through the block table and
lets a function choose the next token. A wrong block table, a block shared wrongly, a wrong position or a lost token therefore changes
its output.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from gpu_workers.sampling.thinking import Thoughts
from ipc.arena import Dimensions, PlanColumns, PlanHeader, ResultColumns, ResultFlag, ResultHeader, RowFlag, RowSetup

EMPTY = -1
NEVER_WRITTEN = -2

# (all tokens so far, setup) -> next token
NextToken = Callable[[np.ndarray, RowSetup], int]


def echo(tokens: np.ndarray, setup: RowSetup) -> int:
    """The prompt's tokens in order, then the first stop id, if the request has one (else the prompt again)."""
    num_output = len(tokens) - setup.num_prompt
    if num_output >= setup.num_prompt and setup.stop_ids and len(tokens) >= setup.min_position:
        return setup.stop_ids[0]
    return int(tokens[num_output % setup.num_prompt])


def hashed(vocab_size: int) -> NextToken:
    """A token that depends on every token before it and on the seed, and on nothing else."""

    def choose(tokens: np.ndarray, setup: RowSetup) -> int:
        weights = np.arange(1, len(tokens) + 1, dtype=np.uint64)
        mixed = int((((tokens.astype(np.uint64) + 1) * weights * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(17)).sum(dtype=np.uint64))
        mixed = (mixed ^ (setup.seed * 0xD1B54A32D192ED03)) * 0xBF58476D1CE4E5B9 % 2**64
        token = (mixed >> 29) % vocab_size
        if len(tokens) < setup.min_position:
            while token in setup.stop_ids:
                token = (token + 1) % vocab_size
        return token

    return choose


class PagedToy:
    """Executes plans as a worker does, over a KV store of token ids. Raises AssertionError on a plan no worker could execute.

    poison(tokens, setup): whether this row's logits are not finite.
    """

    def __init__(
        self, dimensions: Dimensions, block_size: int, num_blocks: int, next_token: NextToken, poison: NextToken | None = None
    ) -> None:
        self.block_size = block_size
        self.next_token = next_token
        self.poison = poison
        self.slots = np.full(num_blocks * block_size, NEVER_WRITTEN, np.int32)
        self.block_table = np.full((dimensions.rows, dimensions.blocks_per_row), EMPTY, np.int32)
        self.last_token = np.full(dimensions.rows, EMPTY, np.int32)
        self.setups: dict[int, RowSetup] = {}
        self.means: dict[int, np.ndarray] = {}
        self.tokens_computed = 0
        self._decoder = msgspec.msgpack.Decoder(list[RowSetup])

    def run(self, plan: PlanColumns, result: ResultColumns) -> None:
        """Compute one step."""
        _, num_rows, num_tokens, num_ids, num_updates, setup_bytes = plan.header[:6].tolist()
        if setup_bytes:
            for setup in self._decoder.decode(plan.setup[:setup_bytes].tobytes()):
                self.setups[setup.row] = setup
                self.last_token[setup.row] = EMPTY
                self.block_table[setup.row] = EMPTY
        self.block_table[plan.block_row[:num_updates], plan.block_index[:num_updates]] = plan.block_id[:num_updates]
        rows = plan.row[:num_rows].tolist()
        assert len(set(rows)) == len(rows), "a row is twice in the plan"
        ids_used = tokens_used = masks_used = vectors_used = 0
        for at, row in enumerate(rows):
            count, start, flags = int(plan.num_new[at]), int(plan.start[at]), int(plan.flags[at])
            if flags & RowFlag.DEVICE_TOKEN:
                assert count == 1 and self.last_token[row] != EMPTY, "a device token that no step has sampled"
                new = self.last_token[row : row + 1]
            else:
                new = plan.token_ids[ids_used : ids_used + count]
                ids_used += count
            mask = None
            if flags & RowFlag.GRAMMAR:
                assert flags & RowFlag.SAMPLE, "a mask for a row that samples nothing"
                mask = np.unpackbits(plan.masks[masks_used].view(np.uint8), bitorder="little").astype(bool)
                masks_used += 1
            self._row(row, start, new, flags, at, tokens_used, result, mask)
            if flags & (RowFlag.EMBED | RowFlag.MEAN):
                assert not flags & RowFlag.SAMPLE, "a row that samples and gives a vector"
                vectors_used += self._embed(row, start, new, flags, at, vectors_used, result)
            tokens_used += count
        assert (ids_used, tokens_used) == (num_ids, num_tokens), "the header miscounts tokens"
        assert masks_used == plan.header[PlanHeader.NUM_MASKS], "the header miscounts masks"
        self.tokens_computed += num_tokens
        result.header[ResultHeader.NUM_ROWS] = num_rows
        result.header[ResultHeader.STEP] = plan.header[PlanHeader.STEP]

    def _row(
        self, row: int, start: int, new: np.ndarray, flags: int, at: int, place: int, result: ResultColumns, mask: np.ndarray | None
    ) -> None:
        setup = self.setups[row]
        positions = np.arange(start, start + len(new))
        blocks = self.block_table[row, positions // self.block_size]
        assert (blocks >= 0).all(), f"row {row} has no block for positions {start}..{start + len(new)}"
        self.slots[blocks * self.block_size + positions % self.block_size] = new
        context = self.context(row, start + len(new))
        assert (context >= 0).all(), f"row {row} reads slots that nobody wrote"
        result.tokens[at], result.flags[at] = EMPTY, 0
        if flags & RowFlag.PROMPT_LOGPROBS:
            self._prompt_logprobs(setup, start, len(new), place, result)
        if flags & RowFlag.SAMPLE:
            token = self.next_token(context, setup)
            if setup.thinking is not None:
                forced = Thoughts(setup.thinking, context[setup.num_prompt :].tolist()).forced
                token = token if forced is None else forced
            if mask is not None:
                token = next_allowed(token, mask)
            self.last_token[row] = token
            result.tokens[at] = token
            if self.poison is not None and self.poison(context, setup):
                result.flags[at] = ResultFlag.NAN
            if setup.logprobs >= 0:
                self._logprobs(setup, len(context), token, at, result)
            if setup.scores and mask is not None:
                listed = result.top_ids[at]
                result.top_ids[at] = np.where((listed >= 0) & mask[listed], listed, EMPTY)

    def _embed(self, row: int, start: int, new: np.ndarray, flags: int, at: int, place: int, result: ResultColumns) -> int:
        """Write the row's toy vector if it is due; how many were."""
        hidden = result.vectors.shape[1]
        if flags & RowFlag.MEAN:
            assert start == 0 or row in self.means, "a mean that goes on without a beginning"
            self.means[row] = toy_vector(new, hidden) + (self.means[row] if start else 0)
        if not flags & RowFlag.EMBED:
            return 0
        if self.poison is not None and self.poison(self.context(row, start + len(new)), self.setups[row]):
            result.flags[at] = ResultFlag.NAN
        result.vectors[place] = self.means.pop(row) if flags & RowFlag.MEAN else toy_vector(self.context(row, start + len(new)), hidden)
        return 1

    def context(self, row: int, length: int) -> np.ndarray:
        """int32[length] tokens as the row's block table finds them."""
        positions = np.arange(length)
        return self.slots[self.block_table[row, positions // self.block_size] * self.block_size + positions % self.block_size]

    def _logprobs(self, setup: RowSetup, position: int, token: int, at: int, result: ResultColumns) -> None:
        result.logprob[at] = logprob_of(position, token)
        result.rank[at] = 1
        result.top_ids[at] = EMPTY
        count = setup.logprobs
        result.top_ids[at, :count] = token + np.arange(count)
        result.top_logprobs[at, :count] = logprob_of(position, token) - np.arange(count)
        if setup.logprob_ids:
            ids = np.frombuffer(setup.logprob_ids, np.int32)
            result.top_ids[at, :count] = ids
            result.top_logprobs[at, :count] = [logprob_of(position, int(each)) for each in ids]

    def _prompt_logprobs(self, setup: RowSetup, start: int, count: int, place: int, result: ResultColumns) -> None:
        history = np.frombuffer(setup.history, np.int32)
        for offset in range(count):
            position = start + offset + 1
            if position < setup.num_prompt:
                result.prompt_logprob[place + offset] = logprob_of(position, int(history[position]))
                result.prompt_rank[place + offset] = position
                result.prompt_top_ids[place + offset] = EMPTY
                result.prompt_top_ids[place + offset, : setup.prompt_logprobs] = history[position]


def next_allowed(token: int, mask: np.ndarray) -> int:
    """The first token from `token` on, round the vocabulary, that mask bool[...] allows."""
    allowed = np.flatnonzero(mask)
    return int(allowed[np.searchsorted(allowed, token) % len(allowed)])


def toy_vector(tokens: np.ndarray, hidden: int) -> np.ndarray:
    """What PagedToy gives for these tokens: a bag of them, and their number, which is in the first place."""
    vector = np.bincount(tokens % hidden, minlength=hidden).astype(np.float32)
    vector[0] += len(tokens)
    return vector


def logprob_of(position: int, token: int) -> float:
    """What PagedToy reports for a token at an absolute position."""
    return -(position + token / 1024)
