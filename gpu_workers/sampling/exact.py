"""Weights whose sums are exact, so that no result depends on the order in which they were added.

Floating-point sums change with their order, and the order changes with batch shape, threads and device. Weights here are
exp(logit - largest logit), in [0, 1], rounded to multiples of a quantum so coarse that the sum over the whole vocabulary still
fits the 53 bits of a float64: every sum and every prefix sum of them is exact, in whatever order and over whatever subset. At a vocabulary
of 32,000 the quantum is 2**-38: what is less likely than the most likely token by more than that is never drawn.
"""

from __future__ import annotations

import torch


class ExactWeights:
    """Rounds weights of one vocabulary size."""

    def __init__(self, vocab_size: int) -> None:
        # Adding 2**b to a number in [0, 1] leaves it at a multiple of 2**(b - 52); vocab_size of them then stay below 2**53 quanta.
        self._shift = 2.0 ** (max(1, (vocab_size - 1).bit_length()) - 1)

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        """float64 multiples of the quantum, from float32 in [0, 1] of any shape."""
        return weights.double().add_(self._shift).sub_(self._shift)
