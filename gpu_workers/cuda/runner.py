"""One step on the GPU in two halves, as gpu_workers.runner has them, but only given to the device: results are in the arena when `done` is
called, and the next step may begin long before.

A step of decode rows is a replay of a graph (graphs.py) that applies the plan, gathers the inputs and runs the layers; other steps
launch the same operations one by one. Logits, sampling and the copies of results are launched one by one in either case: they are few,
and masks may come late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from gpu_workers.attention.cuda_paged import CUDAPagedAttention, Places, Used
from gpu_workers.batch import Bool, StepRows
from gpu_workers.cuda.graphs import DecodeGraphs
from gpu_workers.cuda.layout import Layout
from gpu_workers.cuda.machine import Event, Machine
from gpu_workers.cuda.step_buffers import StepBuffers
from gpu_workers.cuda.waiter import Waiter
from gpu_workers.device.base import Device, Serving
from gpu_workers.kv_cache import KVCache
from gpu_workers.pooling import POOLS, Pooler
from gpu_workers.sampling.device_sampler import DeviceLogprobs, DeviceSampler, Entries, uploader
from ipc.arena import PlanColumns, PlanHeader, ResultColumns, ResultHeader, RowFlag, RowSetup
from ipc.config import Config
from kernels_cuda import rows as rows_kernels

# Prompt log-probabilities are computed over this many logits at a time, which bounds their memory for any prompt.
LOGITS_AT_ONCE = 2**26
SAMPLER_BLOCKS_PER_MULTIPROCESSOR = 4


@dataclass(frozen=True, slots=True)
class Begun:
    """The first half of a step. hidden: of all tokens if inputs.wants_all, else as `last`: of each row's last token. logits: of the entries
    of inputs.sample_at, None where there are none or another rank samples."""

    inputs: StepRows
    hidden: torch.Tensor
    last: torch.Tensor
    logits: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A step whose tokens the host may still have to learn."""

    rows: np.ndarray
    tokens: np.ndarray
    arrived: Event


class CUDARunner:
    """Executes plans in order, each in two halves. Owns the batch, the KV cache and the sampler; rank 0 alone samples and fills results."""

    def __init__(
        self, serving: Serving, device: Device, machine: Machine, config: Config, num_blocks: int, waiter: Waiter, graphs: bool
    ) -> None:
        """graphs: record and replay decode steps."""
        model, dimensions, block_size = serving.model, serving.arena.dimensions, config.cache.block_size
        spec, heads, target = model.spec, model.heads, machine.device
        self._model, self._machine, self._ranks, self._waiter = model, machine, serving.ranks, waiter
        self._block_size, self._vocab_size = block_size, spec.vocab_size
        self._batch_invariant = config.device.batch_invariant
        rows, tokens = dimensions.rows, dimensions.tokens
        self.cache = KVCache(device, spec.num_layers, num_blocks, heads.num_kv, block_size, spec.head_dim, device.cache_dtype(model.dtype))
        self._tables = torch.zeros((rows, dimensions.blocks_per_row), dtype=torch.int32, device=target)
        self._last_token = torch.zeros(rows, dtype=torch.int32, device=target)
        self.attention = CUDAPagedAttention(
            spec, heads.num, self.cache, self._tables, machine.chip, tokens, self._batch_invariant, config.device.attention_prefill
        )
        entries = {
            "last": torch.int64,
            "place": torch.int64,
            "position": torch.int64,
            "entry_row": torch.int32,
            "mask_of": torch.int32,
        }
        self._buffers = StepBuffers(
            machine,
            serving.arena.plans[0],
            Layout({**{name: ((rows,), dtype) for name, dtype in entries.items()}, **self.attention.columns()}),
        )
        self._inputs = _inputs(rows, tokens, target)
        self._upload = uploader(machine.pinned, target)
        blocks = machine.chip.multiprocessors * SAMPLER_BLOCKS_PER_MULTIPROCESSOR
        self._sampler = DeviceSampler(rows, spec.vocab_size, dimensions.logprobs, dimensions.masks, target, blocks, self._upload)
        self._pooler = Pooler(model, self._index)
        self._setups = msgspec.msgpack.Decoder(list[RowSetup])
        self._num_prompt = np.zeros(rows, np.int64)
        self._unlearned: deque[_Sampled] = deque()
        self.graphs = DecodeGraphs(machine, min(rows, tokens), self._buffers.clear, self._decode) if graphs else None
        largest = self.graphs.buckets[-1] if self.graphs is not None else 0
        self._hidden = torch.zeros((largest, spec.hidden_size), dtype=model.dtype, device=target)

    @torch.inference_mode()
    def begin(self, plan: PlanColumns) -> Begun:
        """Give the device a plan up to the logits, without a look at its masks.

        Raises ProtocolError or msgspec.ValidationError for a plan that makes no sense.
        """
        step = StepRows.of(plan, self._vocab_size)
        with self._machine.on(self._machine.compute):
            self._setup(plan)
            decodes = self._decodes(step)
            bucket = self.graphs.bucket(len(step.rows)) if self.graphs is not None and decodes.all() else None
            host = self._buffers.stage()
            self._list_entries(step, host)
            used = self.attention.plan(step, decodes, host, bucket or 0)
            self._buffers.send(plan)
            if bucket is None:
                ends, wants_all = self._buffers.lists["last"][: len(step.rows)], step.wants_all
                everything = wants_all or step.num_tokens == len(step.rows)
                hidden = self._forward(step.num_tokens, self._inputs.rows, used, None if everything else ends)
                last = hidden[ends] if wants_all else hidden
            else:
                assert self.graphs is not None
                self.graphs.replay(bucket)
                hidden = last = self._hidden[: step.num_tokens]
            return Begun(step, hidden, last, self._logits(step, last))

    @torch.inference_mode()
    def finish(self, begun: Begun, result: ResultColumns, done: Callable[[], None]) -> None:
        """Give the device the step's sampling and results; the plan's masks are complete. done() is called on the loop when all is in
        `result`."""
        step = begun.inputs
        with self._machine.on(self._machine.compute):
            tokens = self._sample(step, begun.logits, result)
            if (step.flags & RowFlag.PROMPT_LOGPROBS).any():
                self._prompt_logprobs(step, begun.hidden, result)
            if self._ranks.rank == 0 and (step.flags & POOLS).any():
                self._embed(begun, result)
            if len(step.sample_at):
                self._ranks.broadcast(tokens)
                plan = self._buffers.plan
                rows_kernels.remember_tokens(self._last_token, plan.row, tokens, plan.header.data_ptr() + 8 * PlanHeader.NUM_ROWS)
            arrived = self._machine.event()
            arrived.record(self._machine.compute)
        result.header[ResultHeader.NUM_ROWS] = len(step.rows)
        if self._ranks.rank == 0 and self._sampler.needs_history(step.rows).any():
            self._unlearned.append(_Sampled(step.rows, result.tokens, arrived))
        self._waiter.when(arrived, done)

    @property
    def waiting_seconds(self) -> float:
        return self._waiter.waiting_seconds

    @torch.inference_mode()
    def spare_time(self) -> bool:
        """Use a moment without work to record a graph; whether there may be more to do. No step may be between its halves.

        Several ranks record only when a step asks for it: for that all of them run the layers, and their moments differ.
        """
        if self._ranks.size > 1:
            return False
        with self._machine.on(self._machine.compute):
            return self.graphs is not None and self.graphs.record_next()

    def close(self) -> None:
        self._waiter.close()

    def _setup(self, plan: PlanColumns) -> None:
        size = int(plan.header[PlanHeader.SETUP_BYTES])
        if size:
            setups = self._setups.decode(plan.setup[:size])
            self._learn()  # a setup says all of a row's tokens; those of its past must not be added to them
            self._sampler.setup(setups)
            for setup in setups:
                self._num_prompt[setup.row] = setup.num_prompt

    def _decodes(self, step: StepRows) -> Bool:
        """Which of the step's rows attend through the decode kernel: those with one new token.

        Batch-invariant, all of a prompt goes through the prefill kernel: where it is cut depends on the batch, and the two kernels add in
        different orders.
        """
        single: Bool = step.num_new == 1
        return single & (step.start >= self._num_prompt[step.rows]) if self._batch_invariant else single

    def _list_entries(self, step: StepRows, host: dict[str, np.ndarray]) -> None:
        """Each row's last token; for each row that samples its place in the plan and in the batch and the position of the new token."""
        at = step.sample_at
        count = len(at)
        host["last"][: len(step.rows)] = step.last
        host["place"][:count] = at
        host["entry_row"][:count], host["position"][:count] = step.rows[at], step.seq_lens[at]
        host["mask_of"][:count] = -1
        host["mask_of"][step.masked_at] = np.arange(len(step.masked_at))

    def _decode(self, bucket: int) -> None:
        """A decode step of so many rows, as a graph records it: into `_hidden`."""
        self._hidden[:bucket].copy_(self._forward(bucket, bucket, self.attention.padded(bucket)))

    def _forward(self, tokens: int, rows: int, used: Used, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the plan on the device, gather its inputs and run the layers over `tokens` tokens of at most `rows` rows.

        wanted: as Decoder.forward has it.
        """
        plan, tables, inputs = self._buffers.plan, self._tables, self._inputs.part(tokens, rows)
        header = plan.header.data_ptr()
        updates = (plan.block_row, plan.block_index, plan.block_id)
        rows_kernels.apply_block_updates(tables, *updates, header + 8 * PlanHeader.NUM_BLOCK_UPDATES)
        columns = rows_kernels.StepColumns(plan.row, plan.num_new, plan.start, plan.flags, plan.token_ids, header + 8 * PlanHeader.NUM_ROWS)
        rows_kernels.gather_inputs(columns, tables, self._last_token, self._block_size, inputs)
        self.attention.use(used, self._buffers.lists, Places(inputs.slots, inputs.positions))
        return self._model.forward(inputs.token_ids, inputs.positions, self.attention, wanted)

    def _logits(self, step: StepRows, last: torch.Tensor) -> torch.Tensor | None:
        """Those after the last new token of each row that samples."""
        count = len(step.sample_at)
        if not count:
            return None
        return self._model.logits(last if count == len(last) else last[self._buffers.lists["place"][:count]])

    def _sample(self, step: StepRows, logits: torch.Tensor | None, result: ResultColumns) -> torch.Tensor:
        """The tokens int32 by plan row, -1 where none was sampled; rank 0 has them and writes the rows' results."""
        count, entries = len(step.rows), len(step.sample_at)
        tokens, flags = self._inputs.tokens, self._inputs.flags
        if self._ranks.rank:
            return tokens
        tokens.fill_(-1)
        flags.zero_()
        if logits is not None:
            rows = step.rows[step.sample_at]
            if self._sampler.needs_history(rows).any():
                self._learn()
            if len(step.masked_at):
                self._sampler.put_masks(step.masks)
            lists = (self._buffers.lists[name][:entries] for name in ("entry_row", "position", "mask_of"))
            sampled, nan = self._sampler.sample(logits, Entries(rows, *lists, len(step.masked_at)))
            place = self._buffers.lists["place"][:entries]
            tokens[place], flags[place] = sampled, nan  # ResultFlag.NAN is 1
            at, widths = self._sampler.reported(rows)
            if len(at):
                chosen = sampled if len(at) == entries else sampled[self._index(at)]
                columns = self._sampler.report(logits, at, chosen, widths, rows[at])
                self._write_logprobs(columns, step.sample_at[at], result)
        _copy(result.tokens[:count], tokens[:count])
        _copy(result.flags[:count], flags[:count])
        return tokens

    def _embed(self, begun: Begun, result: ResultColumns) -> None:
        """Write the vectors that are due; after `_sample`, whose flags it adds to."""
        step = begun.inputs
        at, vectors = self._pooler.pool(step, begun.hidden, begun.last)
        if not len(at):
            return
        count, flags = len(step.rows), self._inputs.flags
        flags[self._index(at)] = (~vectors.isfinite().all(1)).to(flags.dtype)  # ResultFlag.NAN is 1
        _copy(result.vectors[: len(at)], vectors)
        _copy(result.flags[:count], flags[:count])

    def _learn(self) -> None:
        """Let the sampler know the tokens it has to know of steps before; waits for them."""
        while self._unlearned:
            sampled = self._unlearned.popleft()
            sampled.arrived.synchronize()
            self._sampler.learn(sampled.rows, sampled.tokens[: len(sampled.rows)])

    def _write_logprobs(self, columns: DeviceLogprobs, at: np.ndarray, result: ResultColumns) -> None:
        """Into rows `at` of the result; a run of rows, such as a step of nothing else, needs no further copy."""
        targets = (result.logprob, result.rank, result.top_ids, result.top_logprobs)
        first, end = int(at[0]), int(at[-1]) + 1
        index = None if end - first == len(at) else self._index(at - first)
        for name, target in zip(DeviceLogprobs.__slots__, targets):
            column = getattr(columns, name)
            if index is not None:
                spread = torch.zeros((end - first, *column.shape[1:]), dtype=column.dtype, device=column.device)
                spread[index] = column
                column = spread
            _copy(target[first:end], column)

    def _prompt_logprobs(self, step: StepRows, hidden: torch.Tensor, result: ResultColumns) -> None:
        """Report on the prompt token after each new token of the rows that asked, a bounded number of logits at a time."""
        most = max(1, LOGITS_AT_ONCE // self._vocab_size)
        targets = (result.prompt_logprob, result.prompt_rank, result.prompt_top_ids, result.prompt_top_logprobs)
        for at in np.flatnonzero(step.flags & RowFlag.PROMPT_LOGPROBS):
            row, start, first = int(step.rows[at]), int(step.start[at]), int(step.query_starts[at])
            count = min(int(step.num_new[at]), int(self._num_prompt[row]) - 1 - start)
            for offset in range(0, count, most):
                size = min(most, count - offset)
                logits = self._model.logits(hidden[first + offset : first + offset + size])
                if logits is None:
                    continue
                known = self._sampler.history(row)[start + offset + 1 :][:size]
                tokens = self._upload({"tokens": known})["tokens"]
                widths = np.full(size, self._sampler.prompt_logprobs_width(row))
                columns = self._sampler.report(logits, np.arange(size), tokens, widths)
                for name, target in zip(DeviceLogprobs.__slots__, targets):
                    _copy(target[first + offset : first + offset + size], getattr(columns, name))

    def _index(self, at: np.ndarray) -> torch.Tensor:
        return self._upload({"at": at.astype(np.int64)})["at"]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a step's kernels write for the layers and the sampler, for the largest step. tokens, flags int32[rows]: results by plan row."""

    whole: rows_kernels.StepTensors
    tokens: torch.Tensor
    flags: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.whole.seq_lens)

    def part(self, tokens: int, rows: int) -> rows_kernels.StepTensors:
        """The beginnings of the columns, for a step of so many tokens and at most so many rows."""
        whole = self.whole
        return rows_kernels.StepTensors(
            whole.token_ids[:tokens], whole.positions[:tokens], whole.slots[:tokens], whole.row_of_token[:tokens],
            whole.query_starts[: rows + 1], whole.given_starts[:rows], whole.seq_lens[:rows],
        )  # fmt: skip


def _inputs(rows: int, tokens: int, device: torch.device) -> _Inputs:
    def zeros(size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    per_token = zeros(tokens), zeros(tokens), zeros(tokens, torch.int64), zeros(tokens)
    return _Inputs(rows_kernels.StepTensors(*per_token, zeros(rows + 1), zeros(rows), zeros(rows)), zeros(rows), zeros(rows))


def _copy(host: np.ndarray, device: torch.Tensor) -> None:
    """Into page-locked memory, when the device gets there."""
    torch.from_numpy(host).copy_(device, non_blocking=True)
