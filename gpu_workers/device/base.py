"""The interface of a device. Everything else in the worker is written against it and never asks which device it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from gpu_workers.attention import Attention
    from gpu_workers.kv_cache import KVCache
    from gpu_workers.layers.ops import Ops
    from gpu_workers.models.spec import DecoderSpec


class Device(Protocol):
    """name: for logs. torch_device: where tensors live. collectives: torch.distributed's backend for several ranks."""

    name: str
    torch_device: torch.device
    collectives: str

    def dtype(self, wanted: str, checkpoint: torch.dtype) -> torch.dtype:
        """The dtype of weights and activations for config.model.dtype `wanted`; 'auto' follows the checkpoint."""
        ...

    def begin_step(self, num_tokens: int, num_weights: int, weight_bytes: int) -> None:
        """Called before each forward pass of num_tokens tokens through so many weights of this rank."""
        ...

    def kv_cache_bytes(self, wanted: int | None) -> int:
        """Bytes this worker may give to KV blocks, now that the weights are loaded; None decides by what is free."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeroed memory that costs nothing before it is touched, where the device can do that."""
        ...

    def pack_linear(self, weight: torch.Tensor) -> PackedLinear | None:
        """The weight [out, in] in the layout the device multiplies fastest, or None where the plain one is that."""
        ...

    def close(self) -> None:
        """End what still runs in the background, before the process ends."""
        ...

    def ops(self, dtype: torch.dtype) -> Ops:
        """The small operations between matrix products."""
        ...

    def prepare(self, shape: AttentionShape) -> None:
        """Start what attention of this shape needs and what takes time; called once, before the weights are read."""
        ...

    def attention(self, spec: DecoderSpec, cache: KVCache) -> Attention:
        """The attention backend over `cache`."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One rank's attention. group: query heads per KV head."""

    head_dim: int
    group: int
    kv_heads: int
    block_size: int
    dtype: torch.dtype


class PackedLinear(Protocol):
    """A weight in a layout of the device's own."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [T, in] to [T, out]."""
        ...
