"""Linear layers split over tensor-parallel ranks (Megatron-LM, arXiv:1909.08053).

Column-parallel layers split their outputs and need no talk; row-parallel ones split their inputs and sum over the ranks after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gpu_workers.collectives import Collectives
from gpu_workers.device import Device
from gpu_workers.layers.ops import Ops
from gpu_workers.quantization.method import LinearMethod, Shard
from gpu_workers.weights.part import Part


class ColumnParallelLinear:
    """One or several linears with the same input, fused; each rank has a slice of each one's outputs, side by side."""

    def __init__(self, method: LinearMethod, shards: Sequence[Shard]) -> None:
        self.method = method
        self._shards = shards

    def parts(self) -> Iterator[Part]:
        return self.method.load(self._shards)

    def process(self, device: Device) -> None:
        self.method.process(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(x)

    def gated(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """activation(gate) * up, of a layer whose outputs are these two."""
        return self.method.apply_gated(x, ops)


class RowParallelLinear(ColumnParallelLinear):
    """A linear whose input is split over the ranks; the result is whole on each of them."""

    def __init__(self, method: LinearMethod, shard: Shard, ranks: Collectives) -> None:
        super().__init__(method, [shard])
        self._ranks = ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._ranks.all_reduce(self.method.apply(x))


def column_shards(linears: Sequence[tuple[str, int, bool]], in_features: int, ranks: Collectives, what: str) -> list[Shard]:
    """Even output slices of `linears` (name, out_features, has bias). Raises ConfigError naming `what` if one cannot be split."""
    shards, row = [], 0
    for name, out_features, bias in linears:
        length = ranks.share(out_features, what)
        shards.append(Shard(name, out_features, in_features, 0, ranks.rank * length, length, row, bias))
        row += length
    return shards


def row_shard(name: str, out_features: int, in_features: int, bias: bool, ranks: Collectives, what: str) -> Shard:
    """An even input slice. Raises ConfigError naming `what` if there is none."""
    length = ranks.share(in_features, what)
    return Shard(name, out_features, in_features, 1, ranks.rank * length, length, 0, bias and ranks.rank == 0)
