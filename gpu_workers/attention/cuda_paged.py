"""Paged attention on the GPU: one kernel norms, turns and stores, then rows with one new token go through the decode kernel, which splits
long contexts over the machine, and the others through the prefill kernel. A mixed step launches both, into one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.attention import HeadNorms
from gpu_workers.batch import Bool, StepRows
from gpu_workers.kv_cache import KVCache
from gpu_workers.models.spec import DecoderSpec
from kernels_cuda import paged_decode, paged_prefill, paged_prefill_wgmma, qkv

if TYPE_CHECKING:
    from gpu_workers.cuda.layout import Columns
    from gpu_workers.cuda.machine import Chip
    from gpu_workers.layers.rotary import Rotary


# By --attention-prefill. They take the same plans. auto: wgmma is not measured yet; a run of bench/gpu on Hopper decides.
PREFILL: Mapping[str, Callable[..., None]] = {
    "auto": paged_prefill.prefill_attention,
    "mma": paged_prefill.prefill_attention,
    "wgmma": paged_prefill_wgmma.prefill_attention,
}


@dataclass(frozen=True, slots=True)
class Places:
    """What gather_inputs wrote of a step's (padded) tokens: slots int64[T], positions int32[T]."""

    slots: torch.Tensor
    positions: torch.Tensor


class CUDAPagedAttention:
    """Attention contract (attention/__init__.py) over `cache`.

    `plan` fills the lists that `columns` names, on the host; when they are on the device, `use` says how many of their entries the
    launches shall cover. tables int32[rows, blocks_per_row]: of the persistent batch, on the device. batch_invariant: split decode rows at
    fixed places, whatever else is in the step. prefill: a key of PREFILL.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        num_heads: int,
        cache: KVCache,
        tables: torch.Tensor,
        chip: Chip,
        max_tokens: int,
        batch_invariant: bool,
        prefill: str,
    ) -> None:
        self._prefill_attention = PREFILL[prefill]
        self._cache, self._tables = cache, tables
        self._heads, self._kv_heads, self._dim = num_heads, cache.num_kv_heads, cache.head_dim
        self._group = num_heads // cache.num_kv_heads
        self._scale, self._windows = spec.softmax_scale, spec.windows
        self._kinds = sorted(set(spec.windows))
        self._head_blocks = paged_decode.head_blocks(self._kv_heads, self._group)
        self._resident = paged_decode.resident_blocks(chip.multiprocessors, chip.shared_memory, self._dim, cache.k[0].itemsize)
        self._max_rows, self._max_tokens = len(tables), max_tokens
        self._longest = tables.shape[1] * cache.block_size
        self._fixed_split = paged_decode.fixed_split(self._longest) if batch_invariant else 0
        self._most_items = self.most_items(len(tables))
        scratch = (self._most_items, num_heads, self._dim)
        self._partial_out = torch.empty(scratch, dtype=torch.float32, device=tables.device)
        self._partial_lse = torch.empty(scratch[:2], dtype=torch.float32, device=tables.device)
        self._lists: Mapping[str, torch.Tensor] = {}
        self._used = Used(0, 0, 0, 0)
        self._places: Places | None = None
        self._rotary: qkv.RotaryTable | None = None

    def columns(self) -> Columns:
        """The lists that a step's launches read: by window the decode rows' work and merges, the prefill rows' work and chunks."""
        rows, most = self._max_rows, paged_prefill.max_items(self._max_rows, self._max_tokens, self._group)
        lists: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"prefill": ((most, 2), torch.int32), "chunks": ((rows, 4), torch.int32)}
        for window in self._kinds:
            lists[f"work{window}"] = (self._most_items, 4), torch.int32
            lists[f"merges{window}"] = (rows, 4), torch.int32
        return lists

    def most_items(self, rows: int) -> int:
        """The most work items that so many decode rows can need."""
        return paged_decode.max_items(rows, self._head_blocks, self._resident, rows * self._longest, self._fixed_split)

    def plan(self, step: StepRows, decodes: Bool, host: Mapping[str, npt.NDArray[np.generic]], bucket: int = 0) -> Used:
        """Fill the host's lists for this step. decodes: the rows for the decode kernel, each with one new token. bucket: pad for a graph of
        so many decode rows; all rows must be such then."""
        items, merges = self._plan_decode(step, np.flatnonzero(decodes), host, bucket)
        prefill, chunks = self._plan_prefill(step, np.flatnonzero(~decodes), host)
        return Used(items, merges, prefill, chunks)

    def padded(self, bucket: int) -> Used:
        """What a graph of so many decode rows covers."""
        return Used(self.most_items(bucket), bucket, 0, 0)

    def use(self, used: Used, lists: Mapping[str, torch.Tensor], places: Places) -> None:
        """The launches that come read these parts of these lists."""
        self._used, self._lists, self._places = used, lists, places

    def begin(self, rotary: Rotary, positions: torch.Tensor) -> None:
        if self._rotary is None:
            self._rotary = qkv.RotaryTable(rotary.table, rotary.dim)

    def run(self, qkv_: torch.Tensor, norms: HeadNorms | None, layer: int) -> torch.Tensor:
        assert self._places is not None and self._rotary is not None
        tokens = qkv_.shape[0]
        k_cache, v_cache, window = self._cache.k[layer], self._cache.v[layer], self._windows[layer]
        q = torch.empty(tokens, self._heads, self._dim, dtype=qkv_.dtype, device=qkv_.device)
        out = torch.empty_like(q)
        head_norms = None if norms is None else qkv.HeadNorms(norms.q, norms.k, norms.eps)
        qkv.norm_rotate_write(qkv_, q, k_cache, v_cache, self._places.slots, self._places.positions, self._rotary, head_norms)
        used, lists = self._used, self._lists
        if used.merges:
            work, merges = lists[f"work{window}"][: used.items], lists[f"merges{window}"][: used.merges]
            scratch = self._partial_out, self._partial_lse
            paged_decode.decode_attention(q, k_cache, v_cache, self._tables, work, merges, *scratch, out, self._scale)
        if used.prefill:
            work, chunks = lists["prefill"][: used.prefill], lists["chunks"][: used.chunks]
            self._prefill_attention(q, k_cache, v_cache, self._tables, work, chunks, out, self._scale, window)
        return out.view(tokens, -1)

    def _plan_decode(self, step: StepRows, at: np.ndarray, host: Mapping[str, np.ndarray], bucket: int) -> tuple[int, int]:
        """How many items and merges the launches cover; all windows have as many, the shorter ones padded."""
        if not len(at) and not bucket:
            return 0, 0
        lengths, rows, queries = (column[at].astype(np.int32) for column in (step.seq_lens, step.rows, step.query_starts))
        merges = bucket or len(at)
        plans = [
            paged_decode.plan_decode(
                lengths, rows, queries, self._head_blocks, self._resident, window, self._fixed_split,
                pad_items=self.most_items(bucket) if bucket else 0, pad_requests=merges,
            )
            for window in self._kinds
        ]  # fmt: skip
        items = max(len(plan.work) for plan in plans)
        for window, plan in zip(self._kinds, plans):
            work = host[f"work{window}"]
            work[: len(plan.work)], work[len(plan.work) : items] = plan.work, 0
            host[f"merges{window}"][:merges] = plan.merges
        return items, merges

    def _plan_prefill(self, step: StepRows, at: np.ndarray, host: Mapping[str, np.ndarray]) -> tuple[int, int]:
        if not len(at):
            return 0, 0
        columns = (step.num_new, step.start, step.query_starts, step.rows)
        num_new, past, queries, rows = (column[at].astype(np.int32) for column in columns)
        plan = paged_prefill.plan_prefill(num_new, past, queries, rows, self._group, max(self._kinds) if all(self._kinds) else 0)
        host["prefill"][: len(plan.work)], host["chunks"][: len(plan.chunks)] = plan.work, plan.chunks
        return len(plan.work), len(plan.chunks)


@dataclass(frozen=True, slots=True)
class Used:
    """How many entries of the lists a step's launches cover."""

    items: int
    merges: int
    prefill: int
    chunks: int
