"""One step in two halves: plan columns in and the forward pass; sampling and result columns out.

Between them the scheduler may still write masks into the plan (docs/architecture.md, Overlap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from gpu_workers.batch import Batch, StepInputs
from gpu_workers.collectives import Collectives
from gpu_workers.device import Device
from gpu_workers.kv_cache import KVCache, bytes_per_block
from gpu_workers.models.decoder import Decoder
from gpu_workers.pooling import POOLS, Pooler
from gpu_workers.sampler import LogprobColumns, Sampled, Sampler
from ipc.arena import Dimensions, PlanColumns, PlanHeader, ResultColumns, ResultFlag, ResultHeader, RowFlag, RowSetup

# Prompt log-probabilities are computed over this many logits at a time, which bounds their memory for any prompt.
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class Begun:
    """The first half of a step. hidden: of all tokens if inputs.wants_all, else as `last`: of each row's last token. logits: of the entries
    of inputs.sample_at, None where there are none or another rank samples."""

    inputs: StepInputs
    hidden: torch.Tensor
    last: torch.Tensor
    logits: torch.Tensor | None


class ModelRunner:
    """Executes plans in order, each in two halves. Owns the batch, the KV cache and the sampler; rank 0 alone samples and fills results."""

    def __init__(
        self, model: Decoder, device: Device, ranks: Collectives, dimensions: Dimensions, block_size: int, num_blocks: int
    ) -> None:
        spec, heads = model.spec, model.heads
        self._model, self._device, self._ranks = model, device, ranks
        self._vocab_size = spec.vocab_size
        self.cache = KVCache(device, spec.num_layers, num_blocks, heads.num_kv, block_size, spec.head_dim, model.dtype)
        self.attention = device.attention(spec, self.cache)
        self.batch = Batch(dimensions, block_size, spec.vocab_size)
        self._sampler = Sampler(dimensions.rows, spec.vocab_size, dimensions.logprobs, device.torch_device, model.ops)
        self._pooler = Pooler(model, torch.from_numpy)
        self._setups = msgspec.msgpack.Decoder(list[RowSetup])
        self._token_bytes = bytes_per_block(spec.num_layers, heads.num_kv, 1, spec.head_dim, model.dtype)
        self._num_prompt = np.zeros(dimensions.rows, np.int64)

    @torch.inference_mode()
    def begin(self, plan: PlanColumns) -> Begun:
        """Compute a plan up to the logits, without a look at its masks.

        Raises ProtocolError or msgspec.ValidationError for a plan that makes no sense.
        """
        self._setup(plan)
        self.batch.update(plan)
        step = self.batch.inputs(plan)
        weights, weight_bytes = self._model.size
        self._device.begin_step(len(step.token_ids), weights, weight_bytes + int(step.seq_lens.sum()) * self._token_bytes)
        self.attention.plan(step)
        target = self._device.torch_device
        ids, positions = (torch.from_numpy(column).to(target) for column in (step.token_ids, step.positions))
        if step.num_tokens == len(step.rows):
            hidden = last = self._model.forward(ids, positions, self.attention)
        else:
            ends, wants_all = torch.from_numpy(step.last).to(target), step.wants_all
            hidden = self._model.forward(ids, positions, self.attention, None if wants_all else ends)
            last = hidden[ends] if wants_all else hidden
        logits = self._logits(step, last)
        self._device.end_step()
        return Begun(step, hidden, last, logits)

    @torch.inference_mode()
    def finish(self, begun: Begun, result: ResultColumns, done: Callable[[], None]) -> None:
        """Sample, write the result, and call done(); the plan's masks are complete."""
        step = begun.inputs
        self._sample(step, begun.logits, result)
        if (step.flags & RowFlag.PROMPT_LOGPROBS).any():
            self._prompt_logprobs(step, begun.hidden, result)
        if self._ranks.rank == 0 and (step.flags & POOLS).any():
            self._embed(begun, result)
        result.header[ResultHeader.NUM_ROWS] = len(step.rows)
        done()

    @property
    def waiting_seconds(self) -> float:
        return 0.0

    def spare_time(self) -> bool:
        return False

    def _setup(self, plan: PlanColumns) -> None:
        size = int(plan.header[PlanHeader.SETUP_BYTES])
        if size:
            setups = self._setups.decode(plan.setup[:size])
            self._sampler.setup(setups)
            for setup in setups:
                self._num_prompt[setup.row] = setup.num_prompt

    def _logits(self, step: StepInputs, last: torch.Tensor) -> torch.Tensor | None:
        """Those after the last new token of each row that samples."""
        if not len(step.sample_at):
            return None
        return self._model.logits(last if len(step.sample_at) == len(last) else last[torch.from_numpy(step.sample_at)])

    def _sample(self, step: StepInputs, logits: torch.Tensor | None, result: ResultColumns) -> None:
        """Sample for the rows that want it, tell all ranks, and write the rows' results."""
        count, at = len(step.rows), step.sample_at
        tokens = torch.zeros(len(at), dtype=torch.int32)
        if len(at):
            if logits is not None:
                sampled = self._sampler.sample(logits, step.rows[at], step.seq_lens[at], step.masked_at, step.masks)
                tokens = torch.from_numpy(np.ascontiguousarray(sampled.tokens, np.int32))
                self._write(sampled, at, count, result)
                if sampled.nan.any():
                    self._scrub(step, at[sampled.nan])
            self.batch.remember(step.rows[at], self._ranks.broadcast(tokens).numpy())
        elif self._ranks.rank == 0:
            result.tokens[:count], result.flags[:count] = -1, 0

    def _write(self, sampled: Sampled, at: np.ndarray, count: int, result: ResultColumns) -> None:
        result.tokens[:count] = -1
        result.tokens[at] = sampled.tokens
        result.flags[:count] = 0
        result.flags[at] = sampled.nan * np.int32(ResultFlag.NAN)
        if sampled.logprobs is not None:
            columns, rows = sampled.logprobs, at[sampled.logprobs.at]
            _write_logprobs(columns, rows, result.logprob, result.rank, result.top_ids, result.top_logprobs)

    def _embed(self, begun: Begun, result: ResultColumns) -> None:
        step = begun.inputs
        at, vectors = self._pooler.pool(step, begun.hidden, begun.last)
        result.vectors[: len(at)] = vectors.numpy()
        bad = at[~vectors.isfinite().all(1).numpy()]
        if len(bad):
            result.flags[bad] = ResultFlag.NAN
            self._scrub(step, bad)

    def _scrub(self, step: StepInputs, at: np.ndarray) -> None:
        """Clear the KV blocks of rows whose logits were not finite: padded attention may read what a block's next owner has not written."""
        used = -(-step.seq_lens[at] // self.cache.block_size)
        tables = step.block_tables[at]
        blocks = np.unique(tables[np.arange(tables.shape[1]) < used[:, None]])
        self.cache.scrub(torch.from_numpy(blocks.astype(np.int64)))

    def _prompt_logprobs(self, step: StepInputs, hidden: torch.Tensor, result: ResultColumns) -> None:
        """Report on the prompt token after each new token of the rows that asked, a bounded number of logits at a time."""
        most = max(1, LOGITS_AT_ONCE // self._vocab_size)
        for at in np.flatnonzero(step.flags & RowFlag.PROMPT_LOGPROBS):
            row, start = int(step.rows[at]), int(step.start[at])
            first = int(step.query_starts[at])
            count = min(int(step.num_new[at]), int(self._num_prompt[row]) - 1 - start)
            for offset in range(0, count, most):
                size = min(most, count - offset)
                logits = self._model.logits(hidden[first + offset : first + offset + size])
                if logits is None:
                    continue
                begin = start + offset + 1
                targets = self._sampler.history(row)[begin : begin + size].astype(np.int64)
                columns = self._sampler.prompt_logprobs(logits, targets, self._sampler.prompt_logprobs_width(row))
                rows = np.arange(first + offset, first + offset + size)
                _write_logprobs(columns, rows, result.prompt_logprob, result.prompt_rank, result.prompt_top_ids, result.prompt_top_logprobs)


def _write_logprobs(
    columns: LogprobColumns, rows: np.ndarray, logprob: np.ndarray, rank: np.ndarray, top_ids: np.ndarray, top_logprobs: np.ndarray
) -> None:
    """Columns into a result's `rows`; alternatives beyond the columns' width are marked unused."""
    width = columns.top_ids.shape[1]
    logprob[rows], rank[rows] = columns.logprob, columns.rank
    top_ids[rows, :width], top_logprobs[rows, :width] = columns.top_ids, columns.top_logprobs
    top_ids[rows, width:] = -1
