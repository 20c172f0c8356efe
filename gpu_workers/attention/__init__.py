"""Paged attention. The runner calls `plan` once per step, the decoder `run` once per layer."""

from __future__ import annotations

from typing import Protocol

import torch

from gpu_workers.batch import StepInputs


class Attention(Protocol):
    """A backend over one KV cache."""

    def plan(self, step: StepInputs) -> None:
        """Prepare what is the same for all layers of this step."""
        ...

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Write k and v [T, kv_heads, head_dim] to the step's slots of `layer`, then attend from q [T, heads, head_dim].

        Token t of a row sees the row's tokens at its own position and before, within the layer's window. Returns [T, heads * head_dim].
        """
        ...
