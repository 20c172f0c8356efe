"""The KV tensors of one worker, in blocks.

Per layer one K and one V tensor [num_blocks, kv_heads, block_size, head_dim]: a (block, head) pair is one contiguous run, which is
what a kernel that works on one row and one KV head reads. All of it starts as zeros, because a masked garbage NaN times
zero would still be NaN.
"""

from __future__ import annotations

import logging

import torch

from gpu_workers.device.base import Device, Serving
from ipc.config import Config, parse_bytes
from ipc.errors import ConfigError

log = logging.getLogger(__name__)

# Blocks that are made unasked for prefixes only: the scheduler keeps some hundred bytes for each (a small model on a large GPU).
MOST_FOR_PREFIXES = 2**20


class KVCache:
    """k[layer], v[layer]: [num_blocks, kv_heads, block_size, head_dim]. Written by the attention backend alone."""

    def __init__(
        self, device: Device, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim = num_blocks, block_size, num_kv_heads, head_dim
        self.k = [device.zeros(shape, dtype) for _ in range(num_layers)]
        self.v = [device.zeros(shape, dtype) for _ in range(num_layers)]

    def scrub(self, blocks: torch.Tensor) -> None:
        """Make the blocks' contents finite again, so that whoever gets them next cannot meet a NaN of their last owner."""
        for cache in (*self.k, *self.v):
            cache[blocks] = torch.nan_to_num(cache[blocks], nan=0.0, posinf=0.0, neginf=0.0)


def bytes_per_block(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, K and V."""
    return 2 * num_layers * num_kv_heads * block_size * head_dim * dtype.itemsize


def affordable_blocks(config: Config, device: Device, block_bytes: int, serving: Serving) -> int:
    """How many blocks this worker can hold: as its memory allows, and without a prefix cache never more than the whole batch could use.

    Raises ConfigError when not even one block fits, and on a CPU when more was asked for than there is memory.
    """
    cache = config.cache
    wanted = cache.num_blocks * block_bytes if cache.num_blocks else parse_bytes(cache.kv_cache_memory)
    memory = device.kv_cache_bytes(wanted, serving)
    if memory < block_bytes:
        raise ConfigError(f"kv_cache_memory of {memory} bytes cannot hold one KV block of {block_bytes} bytes")
    flag = "--num-blocks" if cache.num_blocks else "" if wanted is None else "--kv-cache-memory"
    return _useful(config, memory // block_bytes, flag, serving)


def _useful(config: Config, num_blocks: int, flag: str, serving: Serving) -> int:
    """As many of these as somebody can use. flag: what asked for them, if somebody did; then rank 0 tells of those that are not made."""
    dimensions = serving.arena.dimensions
    most = dimensions.rows * dimensions.blocks_per_row + 1
    if config.cache.enable_prefix_caching:
        # What the batch does not need keeps prefixes for later requests.
        return num_blocks if flag else min(num_blocks, max(most, MOST_FOR_PREFIXES))
    if flag and num_blocks > most and serving.ranks.rank == 0:
        log.info(
            "%s asks for %d KV blocks; %d are made, all that --max-num-seqs requests of full length can use without a prefix cache",
            flag, num_blocks, most,
        )  # fmt: skip
    return min(most, num_blocks)
