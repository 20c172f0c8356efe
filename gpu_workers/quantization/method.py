"""The contract between a linear layer and its quantization method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_workers.device import Device
from gpu_workers.layers.ops import Ops
from gpu_workers.weights.part import Part


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's slice of one checkpoint linear `name`, whose weight is [out_features, in_features].

    dim, start, length: the slice runs along the outputs (0) or the inputs (1). row: where its outputs begin in the layer's fused
    matrix. bias: whether the checkpoint has one that this rank adds (of a layer split along the inputs only rank 0 does).
    """

    name: str
    out_features: int
    in_features: int
    dim: int
    start: int
    length: int
    row: int = 0
    bias: bool = False

    @property
    def outputs(self) -> int:
        return self.length if self.dim == 0 else self.out_features

    @property
    def inputs(self) -> int:
        return self.length if self.dim == 1 else self.in_features


class LinearMethod(Protocol):
    """One linear layer's weight under one method."""

    def load(self, shards: Sequence[Shard]) -> Iterator[Part]:
        """Allocate the parameters and say which checkpoint tensors fill them."""
        ...

    def process(self, device: Device) -> None:
        """Bring the loaded weight into the form `apply` wants; called once, after loading."""
        ...

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] to [T, out]."""
        ...

    def apply_gated(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """x [T, in] to activation(gate) * up [T, out / 2] of a layer whose outputs are gate and up."""
        ...
