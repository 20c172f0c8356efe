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
    """How many blocks this worker can hold: as its memory allows, and never more than the whole batch could use.

    Raises ConfigError when not even one block fits.
    """
    dimensions = serving.arena.dimensions
    most = dimensions.rows * dimensions.blocks_per_row + 1
    if config.cache.num_blocks:
        return _at_most(most, config.cache.num_blocks, "--num-blocks", serving)
    wanted = parse_bytes(config.cache.kv_cache_memory)
    memory = device.kv_cache_bytes(wanted, serving)
    if memory < block_bytes:
        raise ConfigError(f"kv_cache_memory of {memory} bytes cannot hold one KV block of {block_bytes} bytes")
    return _at_most(most, memory // block_bytes, "" if wanted is None else "--kv-cache-memory", serving)


def _at_most(most: int, num_blocks: int, flag: str, serving: Serving) -> int:
    """The smaller number. flag: what asked for num_blocks, if somebody did; then rank 0 tells of those that are not made."""
    if flag and num_blocks > most and serving.ranks.rank == 0:
        log.info("%s asks for %d KV blocks; %d are made, all that --max-num-seqs requests of full length can use", flag, num_blocks, most)
    return min(most, num_blocks)
