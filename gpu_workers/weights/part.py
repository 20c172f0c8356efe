"""What a model wants of a checkpoint: one part per checkpoint tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor and where this rank's slice of it goes.

    name: our parameter name. shape: of the whole tensor in the checkpoint. target: the parameter (or a view of a fused one) that
    takes the slice. dim, start: the slice begins at `start` of dimension `dim`, None for all of it; its length is target's.
    """

    name: str
    shape: tuple[int, ...]
    target: torch.Tensor
    dim: int | None = None
    start: int = 0

    def slice(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's slice of the whole tensor."""
        return whole if self.dim is None else whole.narrow(self.dim, self.start, self.target.shape[self.dim])
