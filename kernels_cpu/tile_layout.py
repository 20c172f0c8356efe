"""Where arguments, rows and packed weights of the products on tiles lie (tile_linear.py), for the kernels and their callers.

Weights, bfloat16 or int8, lie in panels of PANEL outputs, each a run of [64 bytes of inputs: 2 tiles of 16 outputs], so that a panel is
read from its first byte to its last.
"""

from __future__ import annotations

from functools import lru_cache

# A tile: rows, and columns of numbers, inner indices of one product of bfloat16, bytes of it and of a row.
COLUMNS = 16
DEPTH, BYTES, ROW_BYTES = 32, 1024, 64
PANEL = 2 * COLUMNS
# Places in the argument array; the first seven change with every call. COUNTERS: one int64 per thread, 64 bytes apart: how many of its
# panels are taken. SCALES: of int8 outputs, float32, up to a whole panel.
(X, OUT, BIAS, SCRATCH, ROWS, THREADS, ALONE, WEIGHTS, INPUTS, OUTPUTS, COUNTERS, CONFIGURATION, SCALES) = range(13)
NUM_ARGUMENTS = 16
# Panels that a thread takes at a time, at most, so that a chunk of many rows stays in the cache for all of them.
TOGETHER = 8
# Numbers of four bytes that are kept of a row beside its digits.
ROWS_INFO = 3


def packed_bytes(outputs: int, inputs: int, int8: bool) -> int:
    """Size of a weight's panels."""
    return -(-outputs // PANEL) * _steps(inputs, int8) * 2 * BYTES


@lru_cache(4096)
def scratch_bytes(rows: int, inputs: int, threads: int, alone: bool, int8: bool) -> int:
    """The rows as tiles, once or for each thread, and each thread's sums."""
    blocks = -(-rows // COLUMNS)
    tile_rows = 2 * blocks if int8 else blocks
    laid_out = (tile_rows * _steps(inputs, int8) * BYTES + blocks * ROWS_INFO * ROW_BYTES) * (threads if alone else 1)
    return laid_out + threads * (1 + TOGETHER * (tile_rows + 1) * 2) * BYTES + 64


def _steps(inputs: int, int8: bool) -> int:
    return -(-inputs // (2 * DEPTH if int8 else DEPTH))
