"""Where arguments and packed weights of the products by panels lie (linear.py, vnni.py, tile_int4.py), for the kernels and their callers.

Weights lie in panels: PANEL outputs side by side, one input after the other, so that a panel is read from its first byte to its last and an
input's value is multiplied with a whole vector of weights. A vector has LANES numbers; a panel is two of them wide, output j beside
output LANES + j.
"""

from __future__ import annotations

from kernels_cpu import features
from kernels_cpu.tile_layout import BYTES, COLUMNS

# Places in the argument array. NEXT: address of COUNTER, the next panel to take. ALONE: each thread lays out all rows for itself.
# CONFIGURATION: of tiles (tile_int4.py).
X, WEIGHTS, OUT, BIAS, SCALES, SCRATCH, ROWS, INPUTS, PADDED, OUTPUTS, THREADS, NEXT, COUNTER, PORTION, ALONE, CONFIGURATION = range(16)
NUM_ARGUMENTS = 16
LANES = 16 if features.wide() else 8
PANEL = 2 * LANES
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
KINDS = {"bfloat16": BFLOAT16, "int8": INT8, "int4": INT4}
# int4: inputs that share one scale. They are eight to an int32 lane, the lowest four bits first; the scales, bfloat16, follow them.
GROUP = 32
NIBBLES = 8
WORDS = GROUP // NIBBLES
GROUP_BYTES = (WORDS * 2 + 1) * LANES * 4
# Rows of a block, and how many inputs a turn of the inner loop takes: few rows need more sums side by side to keep the CPU busy.
HEIGHTS = ((1, 4), (2, 2), (4, 2), (6, 2))
# Bytes of a thread's sums: 6 rows of a panel of 32.
SUMS_BYTES = 1024
# By VNNI: rows of a block, of which each sum of a row, of 16 outputs and of a digit is a register.
VNNI_HEIGHTS = (1, 2, 4)
# A row's bytes in a group: for each word of the weights, digits of its even inputs, then of its odd ones, the higher ones first; and the
# sum of the group's numbers times -8, which the weights are stored above their value.
VNNI_ROW_BYTES = 2 * GROUP + 4
# On tiles: steps of GROUP inputs that are widened together.
TILE_CHUNK = 16


def panel_bytes(kind: int) -> int:
    """Bytes of one input's weights in a panel; of one group's in int4."""
    return {FLOAT32: PANEL * 4, BFLOAT16: PANEL * 2, INT8: PANEL, INT4: GROUP_BYTES}[kind]


def packed_bytes(name: str, outputs: int, padded: int) -> int:
    """Size of a weight's panels."""
    steps = padded // GROUP if name == "int4" else padded
    return -(-outputs // PANEL) * steps * panel_bytes(KINDS[name])


def vnni_scratch_bytes(rows: int, padded: int, threads: int, alone: bool, height: int) -> int:
    """The rows' digits and scales, once or for each thread, and each thread's sums."""
    laid_out = -(-rows // height) * height * (padded // GROUP * VNNI_ROW_BYTES + 4)
    return laid_out * (threads if alone else 1) + threads * height * PANEL * 4 + 64


def tile_scratch_bytes(rows: int, padded: int, threads: int, alone: bool) -> int:
    """The rows as tiles, once or for each thread, and each thread's sums and widened weights."""
    blocks = -(-rows // COLUMNS)
    laid_out = blocks * (padded // GROUP) * BYTES * (threads if alone else 1)
    return laid_out + threads * (blocks + TILE_CHUNK) * 2 * BYTES + 64
