"""Paged attention on the CPU.

A compiled kernel (cpu_attention.py) does it, once it is there. Until then, and where it cannot be, torch does: in a few groups of rows of
similar size, each one batched scaled_dot_product_attention over padded rows. Nothing loops over rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.attention import HeadNorms
from gpu_workers.attention.cpu_attention import AttentionKernel
from gpu_workers.batch import StepInputs
from gpu_workers.kv_cache import KVCache
from gpu_workers.layers.rotary import Rotary
from gpu_workers.models.spec import DecoderSpec

# Most (query, key) pairs of one padded group, over its rows: bounds the mask and the gathered keys and values.
GROUP_PAIRS = 2**22


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a step that are computed together, padded to Q queries and K keys.

    tokens int64[B, Q]: index of each query among the step's tokens, padding repeats the row's last. real bool[B, Q], None if all are.
    blocks int64[B, K / block_size]: None for rows that begin in this step, whose keys are the step's own.
    query_positions [B, Q], num_keys [B]: for the masks.
    """

    tokens: torch.Tensor
    real: torch.Tensor | None
    blocks: torch.Tensor | None
    query_positions: torch.Tensor
    num_keys: int

    def mask(self, window: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [B, 1, Q, K]."""
        query = self.query_positions[:, :, None]
        key = torch.arange(self.num_keys)
        hidden = key > query
        if window:
            hidden |= key <= query - window
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")).unsqueeze(1)


class CPUPagedAttention:
    """Attention contract (attention/__init__.py) over `cache` on the CPU."""

    def __init__(self, spec: DecoderSpec, cache: KVCache, kernel: AttentionKernel) -> None:
        self._cache, self._kernel = cache, kernel
        self._windows, self._scale = spec.windows, spec.softmax_scale
        self._groups: list[Group] = []
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._compiled = False
        self._block = self._offset = torch.empty(0, dtype=torch.int64)
        self._rotary: Rotary | None = None
        self._angles: tuple[torch.Tensor, torch.Tensor] | None = None

    def plan(self, step: StepInputs) -> None:
        """Prepare what is the same for all layers of this step."""
        self._compiled = self._kernel.ready
        if self._compiled:
            self._kernel.plan(step, self._scale)
            return
        self._masks.clear()
        self._groups = [self._group(step, rows) for rows in group_rows(step, np.arange(len(step.rows)))]
        block, offset = np.divmod(step.slots, self._cache.block_size)
        self._block, self._offset = torch.from_numpy(block), torch.from_numpy(offset)

    def begin(self, rotary: Rotary, positions: torch.Tensor) -> None:
        if self._compiled:
            self._kernel.begin(rotary)
        else:
            self._rotary, self._angles = rotary, rotary.at(positions)

    def run(self, qkv: torch.Tensor, norms: HeadNorms | None, layer: int) -> torch.Tensor:
        kv_heads = self._cache.num_kv_heads
        heads = qkv.shape[1] - 2 * kv_heads
        out = torch.empty(qkv.shape[0], heads, qkv.shape[2], dtype=qkv.dtype)
        if self._compiled:
            self._kernel.run(qkv, norms, self._cache, layer, self._windows[layer], out)
            return out.view(qkv.shape[0], -1)
        assert self._rotary is not None and self._angles is not None
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if norms is not None:
            qk = F.rms_norm(qk, qk.shape[2:], None, norms.eps) * norms.by_head
        qk = self._rotary(qk, *self._angles)
        q, k = qk[:, :heads], qk[:, heads:]
        self._cache.k[layer][self._block, :, self._offset] = k
        self._cache.v[layer][self._block, :, self._offset] = v
        for index, group in enumerate(self._groups):
            attended = self._attend(index, group, q, k, v, layer)
            if group.real is None:
                out[group.tokens] = attended
            else:
                out[group.tokens[group.real]] = attended[group.real]
        return out.view(qkv.shape[0], -1)

    def _attend(self, index: int, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """[B, Q, heads, head_dim] of one group."""
        window = self._windows[layer]
        queries = q[group.tokens].transpose(1, 2)
        if group.blocks is None:
            keys, values = k[group.tokens].transpose(1, 2), v[group.tokens].transpose(1, 2)
            # Padding comes after the real tokens, so the causal rule alone hides it from them.
            causal = window == 0 or window >= group.num_keys
        else:
            keys, values = self._gather(self._cache.k[layer], group), self._gather(self._cache.v[layer], group)
            causal = False
        mask = None if causal else self._mask(index, group, window, q.dtype)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=self._scale, enable_gqa=queries.shape[1] != keys.shape[1]
        )
        return attended.transpose(1, 2)

    def _gather(self, cache: torch.Tensor, group: Group) -> torch.Tensor:
        """[B, kv_heads, K, head_dim] of a group's blocks."""
        assert group.blocks is not None
        blocks = cache[group.blocks]  # [B, K / block_size, kv_heads, block_size, head_dim]
        return blocks.transpose(1, 2).reshape(blocks.shape[0], blocks.shape[2], -1, blocks.shape[4])[:, :, : group.num_keys]

    def _mask(self, index: int, group: Group, window: int, dtype: torch.dtype) -> torch.Tensor:
        key = (index, window)
        if key not in self._masks:
            self._masks[key] = group.mask(window, dtype)
        return self._masks[key]

    def _group(self, step: StepInputs, rows: np.ndarray) -> Group:
        num_new, start = step.num_new[rows], step.start[rows]
        queries, keys = int(num_new.max()), int(step.seq_lens[rows].max())
        steps = np.minimum(np.arange(queries), num_new[:, None] - 1)
        padded = bool((num_new != queries).any())
        num_blocks = -(-keys // self._cache.block_size)
        return Group(
            tokens=torch.from_numpy(step.query_starts[rows][:, None] + steps),
            real=torch.from_numpy(np.arange(queries) < num_new[:, None]) if padded else None,
            blocks=torch.from_numpy(step.block_tables[rows, :num_blocks].astype(np.int64)) if start.any() else None,
            query_positions=torch.from_numpy(start[:, None] + steps),
            num_keys=keys,
        )


def group_rows(step: StepInputs, some: np.ndarray) -> list[np.ndarray]:
    """The rows `some` of a step in groups alike within a factor of two in queries and in keys, each of bounded size.

    Rows that begin in this step are kept apart from those that have a past: they need no gathering and no mask.
    """
    groups: list[np.ndarray] = []
    if not some.size:
        return groups
    sizes = _log2(step.num_new[some]) * 128 + _log2(step.seq_lens[some]) * 2 + (step.start[some] == 0)
    order = np.argsort(sizes, kind="stable")
    for rows in np.split(some[order], np.flatnonzero(np.diff(sizes[order])) + 1):
        pairs = int(step.num_new[rows].max()) * int(step.seq_lens[rows].max())
        most = max(1, GROUP_PAIRS // pairs)
        groups.extend(rows[first : first + most] for first in range(0, len(rows), most))
    return groups


def _log2(values: np.ndarray) -> np.ndarray:
    """The power of two that each value fits into."""
    return np.ceil(np.log2(values)).astype(np.int64)
