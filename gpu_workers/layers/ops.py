"""Small operations between a decoder's matrix products, in torch. A device may have faster ones of the same contract."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Ops:
    """All results have the dtype of the input."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T, hidden] divided by its root mean square, times weight [hidden] (arXiv:1910.07467)."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, scale: float, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x += scale * delta, in place; returns the norm of the new x."""
        return self.rms_norm(x.add_(delta, alpha=scale), weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(gate) * up of gate_up [T, 2 * width], gate first."""
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate).mul_(up)
        return F.gelu(gate, approximate="none" if activation == "gelu" else "tanh").mul_(up)
