"""Small operations between a decoder's matrix products, in torch. A device may have faster ones of the same contract."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


class Ops:
    """Tensors that come out have the dtype of the input."""

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

    def most_likely(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The lowest id int64 [n] of each row's largest number, and that number, float, of logits [n, vocab].

        The number is NaN where the row holds one; then, and where it is -inf, the id means nothing.
        """
        if logits.device.type == "cpu":
            # numpy's argmax is vectorised, torch's is not (20 times slower at 256 x 4096).
            rows = logits.float().numpy()
            ids = rows.argmax(-1)
            return ids, np.take_along_axis(rows, ids[:, None], -1)[:, 0]
        device_ids = logits.argmax(-1, keepdim=True)
        return device_ids[:, 0].cpu().numpy(), logits.gather(1, device_ids)[:, 0].float().cpu().numpy()
