"""The small operations between matrix products in one kernel each; torch serves what the kernels do not know."""

from __future__ import annotations

import torch

from gpu_workers.layers.ops import Ops
from kernels_cuda import activations, norms
from kernels_cuda.kernel import ACTIVATION_DTYPES


class CUDAOps(Ops):
    """Contract of Ops; x and gate_up must be contiguous, as they are in the decoder."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not _normed(x):
            return super().rms_norm(x, weight, eps)
        out = torch.empty_like(x)
        norms.add_rms_norm(x, None, weight, out, eps)
        return out

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, scale: float, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not _normed(x):
            return super().add_rms_norm(x, delta, scale, weight, eps)
        out = torch.empty_like(x)
        norms.add_rms_norm(x, delta, weight, out, eps, scale)
        return out

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        if width % activations.VECTOR or activation not in activations.ENTRIES:
            return super().gated(gate_up, activation)
        out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
        activations.gated(gate_up, out, activation)
        return out


def _normed(x: torch.Tensor) -> bool:
    hidden = x.shape[-1]
    return str(x.dtype) in ACTIVATION_DTYPES and hidden % norms.VECTOR == 0 and hidden <= norms.MAX_HIDDEN
