"""Paged attention. A runner plans each step with its device's own backend; the decoder then sees what is declared here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from gpu_workers.layers.rotary import Rotary


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms over each head of q and of k: weights [head_dim].

    by_head [heads + kv_heads, head_dim]: each head's weight, q's heads before k's.
    """

    q: torch.Tensor
    k: torch.Tensor
    by_head: torch.Tensor
    eps: float


class Attention(Protocol):
    """A backend over one KV cache, planned for one step."""

    def begin(self, rotary: Rotary, positions: torch.Tensor) -> None:
        """Called before the first layer: by what angles q and k of this step's tokens [T] turn."""
        ...

    def run(self, qkv: torch.Tensor, norms: HeadNorms | None, layer: int) -> torch.Tensor:
        """Norm and turn q and k, write k and v to the step's slots of `layer`, then attend. May change qkv.

        qkv [T, heads + 2 * kv_heads, head_dim]. Token t of a row sees the row's tokens at its own position and before, within the
        layer's window. Returns [T, heads * head_dim].
        """
        ...
