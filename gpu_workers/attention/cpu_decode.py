"""Decode attention over paged keys and values as a compiled kernel: one query token per row.

A unit of work is one row and one KV head with its group of query heads; it also stores the row's new key and value, so no other
thread ever waits for them. Scores are computed for all keys first, then the softmax, then the weighted sum of values; all in float32.
Reference: attention/cpu_paged.py computes the same with torch and serves while this is being compiled, or where numba is not.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpu_workers.batch import StepInputs
from gpu_workers.device.base import AttentionShape

if TYPE_CHECKING:
    from gpu_workers.kv_cache import KVCache

log = logging.getLogger(__name__)

# Below this many multiplications a step's attention runs on the calling thread: waking the others costs more.
WORTH_THREADS = 2**17
# Places in the argument array.
(Q, K, V, OUT, K_CACHE, V_CACHE, TABLES, LENGTHS, TOKENS, BOUNDS, SCRATCH, Q_STRIDE, K_STRIDE, V_STRIDE, TABLE_WIDTH, WINDOW, SCRATCH_WIDTH,
 HEADS, ROWS, SCALE_BITS, NUM_BLOCKS) = range(21)  # fmt: skip
NUM_ARGUMENTS = 24


class DecodeKernel:
    """The kernel of one shape; `ready` once it is compiled, which happens in a thread of its own."""

    def __init__(self, shape: AttentionShape, threads: int) -> None:
        self.ready = False
        self._shape, self._threads = shape, threads
        self._arguments = np.zeros(NUM_ARGUMENTS, np.int64)
        self._launch: Any = None
        self._used = 1
        self._keep: tuple[Any, ...] = ()
        self._thread = threading.Thread(target=self._compile, name="compile-decode-attention", daemon=True)
        if shape.dtype in (torch.float32, torch.bfloat16):
            self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether the kernel is ready within `timeout` seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return self.ready

    def plan(self, step: StepInputs, rows: np.ndarray, scale: float) -> None:
        """Prepare for the rows (indices into step.rows, one new token each) of this step."""
        shape, a = self._shape, self._arguments
        lengths, tokens = step.seq_lens[rows], step.query_starts[rows]
        tables = np.ascontiguousarray(step.block_tables[rows])
        # Units in row-major order, cut so that each thread has about as many keys to read.
        total = int(lengths.sum()) * shape.kv_heads
        self._used = 1 if total * shape.group * shape.head_dim < WORTH_THREADS else self._threads
        ends = np.repeat(lengths, shape.kv_heads).cumsum()
        bounds = np.searchsorted(ends, np.linspace(0, total, self._used + 1)[1:-1])
        bounds = np.concatenate(([0], bounds, [len(ends)])).astype(np.int64)
        width = -(-int(lengths.max()) // shape.block_size) * shape.block_size
        scratch = np.empty((self._used, shape.group * (width + 2 * shape.head_dim)), np.float32)
        self._keep = (lengths, tokens, tables, bounds, scratch)
        a[LENGTHS], a[TOKENS], a[TABLES], a[BOUNDS] = (column.ctypes.data for column in (lengths, tokens, tables, bounds))
        a[SCRATCH], a[SCRATCH_WIDTH], a[TABLE_WIDTH], a[ROWS] = scratch.ctypes.data, scratch.shape[1], tables.shape[1], len(rows)
        a[SCALE_BITS] = int(np.float32(scale).view(np.uint32))

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, window: int, out: torch.Tensor) -> None:
        """Store the planned rows' k and v, attend, and write their rows of out [T, heads, head_dim]. Heads must be adjacent in memory."""
        a = self._arguments
        a[Q], a[K], a[V], a[OUT] = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        a[K_CACHE], a[V_CACHE] = cache.k[layer].data_ptr(), cache.v[layer].data_ptr()
        a[Q_STRIDE], a[K_STRIDE], a[V_STRIDE], a[WINDOW] = q.stride(0), k.stride(0), v.stride(0), window
        a[NUM_BLOCKS] = cache.num_blocks
        self._launch(self._used)

    def _compile(self) -> None:
        began = time.monotonic()
        try:
            from gpu_workers.attention.cpu_decode_kernel import compiled
            from gpu_workers.device.cpu_native import launcher

            shape = self._shape
            kernel = compiled(shape.head_dim, shape.group, shape.kv_heads, shape.block_size, shape.dtype == torch.bfloat16)
            self._launch = launcher(kernel, self._arguments)
        except Exception as error:
            # Whatever numba, the cache directory or a missing libgomp may raise: torch computes the same, more slowly.
            log.warning("decode attention stays with torch: %s: %s", type(error).__name__, error)
            return
        self.ready = True
        log.debug("decode attention compiled in %.1f s", time.monotonic() - began)
