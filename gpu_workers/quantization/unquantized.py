"""A plain floating-point weight, in the device's own layout where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from gpu_workers.device import Device
from gpu_workers.device.base import PackedLinear
from gpu_workers.layers.ops import Ops
from gpu_workers.quantization.method import Shard
from gpu_workers.weights.part import Part


class Unquantized:
    """weight [out, in] and bias [out] or None, of all shards below one another; the weight is dropped once it is packed.

    activation: of a layer that only `apply_gated` is used of, else "".
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, activation: str = "") -> None:
        self._dtype, self._device, self._activation = dtype, device, activation
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._packed: PackedLinear | None = None
        self._gated: PackedLinear | None = None

    def load(self, shards: Sequence[Shard]) -> Iterator[Part]:
        outputs = sum(shard.outputs for shard in shards)
        weight = torch.empty(outputs, shards[0].inputs, dtype=self._dtype, device=self._device)
        self.use(weight, torch.zeros(outputs, dtype=self._dtype, device=self._device) if any(s.bias for s in shards) else None)
        for shard in shards:
            rows = slice(shard.row, shard.row + shard.outputs)
            yield Part(f"{shard.name}.weight", (shard.out_features, shard.in_features), weight[rows], shard.dim, shard.start)
            if shard.bias and self._bias is not None:
                whole = shard.dim == 1
                yield Part(f"{shard.name}.bias", (shard.out_features,), self._bias[rows], None if whole else 0, 0 if whole else shard.start)

    def use(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take a weight that is loaded elsewhere (a head tied to the embedding)."""
        self._weight, self._bias = weight, bias

    def process(self, device: Device) -> None:
        assert self._weight is not None
        if self._activation:
            self._gated = device.pack_gated(self._weight, self._activation)
        if self._gated is None:
            self._packed = device.pack_linear(self._weight)
        if self._gated is not None or self._packed is not None:
            self._weight = None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            return self._packed(x, self._bias)
        assert self._weight is not None
        return F.linear(x, self._weight, self._bias)

    def apply_gated(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        return ops.gated(self.apply(x), self._activation) if self._gated is None else self._gated(x, self._bias)
