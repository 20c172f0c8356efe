"""Where arguments and scratch memory of attention lie (attention.py, tile_attention.py), for the kernels and their callers."""

from __future__ import annotations

from kernels_cpu.linear_layout import PANEL
from kernels_cpu.tile_layout import COLUMNS, DEPTH

# Query rows (tokens times heads of a group) of one tile, at most; tokens of one tile, at most.
TILE_ROWS, TILE_TOKENS = 96, 64
# Places in the argument array. Tiles and parts are columns over the rows of a step; SPLIT parts belong to each row that decodes.
(QKV, OUT, K_CACHE, V_CACHE, NUM_BLOCKS, WINDOW, Q_NORM, K_NORM, EPS_BITS, SCALE_BITS, ANGLES, HALF, POSITIONS, SLOTS, TOKENS, TABLES,
 TABLE_WIDTH, ROWS, LENGTHS, NUM_NEW, STARTS, TILES, TILE_ROW, TILE_FIRST, DECODING, DECODE_ROW, SPLIT, PART_FIRST, PART_END, PARTIALS,
 SCRATCH, SCRATCH_BYTES, THREADS, NEXT_TILE, NEXT_PART, COUNTERS, TILE_CONFIGURATION) = range(37)  # fmt: skip
NUM_ARGUMENTS = 40
# Query rows that are multiplied together, and keys that a tile meets at a time.
HEIGHT, KEYS = 6, 128
# The same where a unit multiplies tiles of bfloat16: query rows of one piece of work.
MOST_ROWS = 64
# Numbers in a block's state (tile_attention.py), 16 of each.
STATE = 5
# Where a group has few heads (dots_decode.py): bytes of the blocks of KV heads that are served together, at most, and keys of a row's
# part that are scored before their values are added up, but for a block that has more.
RUN, AT_ONCE = 8 * 1024, 256


def blocks_of(group: int, tokens: int) -> int:
    """Blocks of HEIGHT query rows in a tile of so many tokens."""
    return -(-group * tokens // HEIGHT)


def tile_tokens(group: int, on_tiles: bool) -> int:
    """Tokens of one piece of work, at most."""
    return max(1, min(TILE_TOKENS, (MOST_ROWS if on_tiles else TILE_ROWS) // group))


def scratch_bytes(dim: int, group: int, keys: int) -> int:
    """What one thread needs, for parts of `keys` keys."""
    rows, width = blocks_of(group, tile_tokens(group, False)) * HEIGHT, -(-dim // PANEL) * PANEL
    tile = rows * (dim + width + 2) + KEYS * (dim + width + 2 * HEIGHT) + HEIGHT * PANEL
    decode = 4 * group * (keys + 2 * dim)
    return max(4 * tile, decode) + 4 * (dim + 64)


def fits_tiles(dim: int, block_size: int) -> bool:
    """Whether heads and blocks of this size fall into whole tiles."""
    return dim % DEPTH == 0 and block_size % COLUMNS == 0


def tile_scratch_bytes(dim: int, group: int, kv_heads: int, size: int) -> int:
    """What one thread needs on tiles."""
    blocks = -(-tile_tokens(group, True) * group // COLUMNS)
    block = dim * COLUMNS * (2 + 4) + STATE * COLUMNS * 4
    tiles = blocks * block + KEYS * (COLUMNS * (4 + 2 + 2) + dim * 2)
    decode = heads_together(dim, kv_heads, size) * group * ((4 + 2) * max(AT_ONCE, size) + 4 * dim + 64)
    return max(tiles, decode) + 4096


def heads_together(dim: int, kv_heads: int, size: int) -> int:
    """KV heads of a row that are served together: their blocks lie side by side, and memory is fastest in runs of a page and more."""
    return max(count for count in range(1, kv_heads + 1) if kv_heads % count == 0 and (count == 1 or count * size * dim * 2 <= RUN))
