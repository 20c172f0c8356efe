"""Attention over paged keys and values as one kernel per layer (kernels_cpu/attention.py), for any mix of rows.

Its threads first norm and turn the step's queries and keys and put keys and values into the cache. Then they share two kinds of work: a
tile of a row's queries with one KV head (prefill), and a row's single query with one KV head (decode), whose keys are cut into parts
when rows are few. All in float32, but for CPUs that multiply bfloat16 (kernels_cpu/tile_attention.py).
Reference: cpu_paged.py computes the same with torch; it serves until the kernel is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpu_workers.attention import HeadNorms
from gpu_workers.batch import StepInputs
from gpu_workers.device.base import AttentionShape
from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.layers.rotary import Rotary
from kernels_cpu import features
from kernels_cpu.attention_layout import (
    ANGLES,
    COUNTERS,
    DECODE_ROW,
    DECODING,
    EPS_BITS,
    HALF,
    K_CACHE,
    K_NORM,
    LENGTHS,
    NEXT_PART,
    NEXT_TILE,
    NUM_ARGUMENTS,
    NUM_BLOCKS,
    NUM_NEW,
    OUT,
    PART_END,
    PART_FIRST,
    PARTIALS,
    POSITIONS,
    Q_NORM,
    QKV,
    ROWS,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_BYTES,
    SLOTS,
    SPLIT,
    STARTS,
    TABLE_WIDTH,
    TABLES,
    THREADS,
    TILE_CONFIGURATION,
    TILE_FIRST,
    TILE_ROW,
    TILES,
    TOKENS,
    V_CACHE,
    WINDOW,
    fits_tiles,
    scratch_bytes,
    tile_scratch_bytes,
    tile_tokens,
)
from kernels_cpu.image import launcher
from kernels_cpu.recipe import Kernel

if TYPE_CHECKING:
    from gpu_workers.kv_cache import KVCache

# Below this many multiplications a step's attention runs on the calling thread: waking the others costs more.
WORTH_THREADS = 2**19
# A decode row's keys are cut, where rows are too few for all threads, into parts of no less than this.
PART_KEYS = 256


class AttentionKernel(KernelSet):
    """The kernel of one shape."""

    def __init__(self, shape: AttentionShape, threads: int) -> None:
        super().__init__("attention kernels")
        self._shape, self._threads = shape, threads
        self._arguments = np.zeros(NUM_ARGUMENTS, np.int64)
        self._arguments[COUNTERS] = self._arguments.ctypes.data + NEXT_TILE * self._arguments.itemsize
        self._launch: Any = None
        self._used = 1
        bf16, dots = shape.dtype == torch.bfloat16, not features.amx()
        on_tiles = bf16 and (not dots or features.dots()) and fits_tiles(shape.head_dim, shape.block_size)
        sizes = shape.head_dim, shape.group, shape.kv_heads, shape.block_size
        self._tokens = tile_tokens(shape.group, on_tiles)
        on_tiles_bytes = tile_scratch_bytes(*sizes)
        self._scratch_bytes: Callable[[int], int] = (
            (lambda keys: on_tiles_bytes) if on_tiles else partial(scratch_bytes, shape.head_dim, shape.group)
        )
        self._configuration = features.tile_configuration()
        self._arguments[TILE_CONFIGURATION] = self._configuration.ctypes.data
        self._keep: tuple[Any, ...] = ()
        self._scratch = self._partials = np.empty(0, np.uint8)
        if shape.dtype in (torch.float32, torch.bfloat16):
            module, last = ("tile_attention", dots) if on_tiles else ("attention", bf16)
            self.start({"attention": Kernel(module, "attention", (*sizes, last))})

    def plan(self, step: StepInputs, scale: float) -> None:
        """Prepare what is the same for all layers of this step."""
        shape, a = self._shape, self._arguments
        pairs = int((step.num_new * step.seq_lens).sum()) * shape.kv_heads * shape.group * shape.head_dim
        most = 1 if pairs < WORTH_THREADS else self._threads
        threads = self._used = min(most, torch.get_num_threads())
        tile_row, tile_first = self._tiles(step)
        decode_row = np.flatnonzero(step.num_new == 1)
        # Cut as for all threads, also where fewer do it: results do not depend on how many there are.
        split, first, end = self._parts(step.seq_lens[decode_row], most)
        columns = {
            POSITIONS: step.positions, SLOTS: step.slots, LENGTHS: step.seq_lens, NUM_NEW: step.num_new,
            STARTS: step.query_starts, TILE_ROW: tile_row, TILE_FIRST: tile_first, DECODE_ROW: decode_row, PART_FIRST: first, PART_END: end,
        }  # fmt: skip
        tables = np.ascontiguousarray(step.block_tables, np.int32)
        a[TABLES] = tables.ctypes.data
        contiguous = [np.ascontiguousarray(column, np.int64) for column in columns.values()]
        a[list(columns)] = [column.ctypes.data for column in contiguous]
        self._keep = (tables, *contiguous)
        a[TABLE_WIDTH], a[ROWS], a[TOKENS], a[THREADS] = tables.shape[1], len(step.rows), len(step.positions), threads
        a[TILES], a[DECODING], a[SPLIT] = len(tile_row), len(decode_row), split
        a[SCALE_BITS] = int(np.float32(scale).view(np.uint32))
        keys = int((end - first).max()) + 2 * shape.block_size if len(first) else 0
        needed = self._scratch_bytes(keys)
        if self._scratch.size < needed * threads:
            self._scratch = np.empty(needed * threads, np.uint8)
        a[SCRATCH], a[SCRATCH_BYTES] = self._scratch.ctypes.data, needed
        if split > 1:
            self._partials = np.empty(len(first) * shape.kv_heads * shape.group * (shape.head_dim + 2) * 4, np.uint8)
            a[PARTIALS] = self._partials.ctypes.data

    def _tiles(self, step: StepInputs) -> tuple[np.ndarray, np.ndarray]:
        """Rows with several new tokens, cut into tiles: the row of each, and its first query's place in the row."""
        tokens = self._tokens
        tiles = np.where(step.num_new > 1, -(-step.num_new // tokens), 0)
        row = np.repeat(np.arange(len(tiles)), tiles)
        return row, (np.arange(len(row)) - np.repeat(tiles.cumsum() - tiles, tiles)) * tokens

    def _parts(self, lengths: np.ndarray, threads: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Into how many parts each decoding row's keys are cut, and where all parts begin and end, row by row."""
        split = 1
        if threads > 1 and len(lengths):
            wanted = -(-4 * threads // (len(lengths) * self._shape.kv_heads))
            split = max(1, min(wanted, int(lengths.max()) // PART_KEYS))
        size = self._shape.block_size
        length = -(-lengths // (split * size)) * size
        first = np.minimum(np.arange(split) * length[:, None], lengths[:, None])
        end = np.minimum(first + length[:, None], lengths[:, None])
        return split, np.ascontiguousarray(first).reshape(-1), np.ascontiguousarray(end).reshape(-1)

    def begin(self, rotary: Rotary) -> None:
        a = self._arguments
        a[ANGLES], a[HALF] = rotary.table.data_ptr(), rotary.dim // 2

    def run(self, qkv: torch.Tensor, norms: HeadNorms | None, cache: KVCache, layer: int, window: int, out: torch.Tensor) -> None:
        """Attention.run into out [T, heads, head_dim]; qkv is contiguous."""
        a = self._arguments
        a[QKV], a[OUT], a[WINDOW], a[NUM_BLOCKS] = qkv.data_ptr(), out.data_ptr(), window, cache.num_blocks
        a[K_CACHE], a[V_CACHE] = cache.k[layer].data_ptr(), cache.v[layer].data_ptr()
        if norms is None:
            a[Q_NORM] = 0
        else:
            a[Q_NORM], a[K_NORM], a[EPS_BITS] = norms.q.data_ptr(), norms.k.data_ptr(), int(np.float32(norms.eps).view(np.uint32))
        a[NEXT_TILE] = a[NEXT_PART] = 0
        self._launch(self._used)

    def take(self, addresses: Mapping[str, int]) -> None:
        self._launch = launcher(addresses["attention"], self._arguments)
