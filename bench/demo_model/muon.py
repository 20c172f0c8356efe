"""Muon: momentum whose matrices are made orthogonal before the step, so that every direction of a matrix learns alike.

In measurements on small models it needs markedly fewer tokens than Adam for the same loss. Embeddings and gains, which
are no maps between spaces, stay with AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Coefficients of the odd quintic whose iteration drives all singular values towards one (the published ones).
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz on a stack (count, rows, columns): roughly U V^T of each matrix, without a decomposition."""
    a, b, c = QUINTIC
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Steps all matrices of one shape as one stack, since many small products cost more than one batched product."""

    def __init__(self, parameters: list[Tensor], momentum: float = 0.95, decay: float = 0.05) -> None:
        self.momentum, self.decay = momentum, decay
        self.groups: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            self.groups.setdefault(parameter.shape, []).append(parameter)
        self.buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One Nesterov step; `rate` is the size of an update's singular values, scaled up for tall matrices."""
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group])
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalized(gradient.lerp(buffer, self.momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update):
                parameter.mul_(1 - rate * self.decay).add_(change, alpha=-rate * scale)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(tuple(shape)): buffer for shape, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for shape, buffer in self.buffers.items():
            buffer.copy_(state[str(tuple(shape))])
