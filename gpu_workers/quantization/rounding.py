"""Weights rounded to few bits, symmetric around zero, from the floating-point checkpoint.

int8: one scale per output. int4: one scale per output and GROUP inputs, bfloat16; the number of largest magnitude becomes -8. Outputs and
inputs are those of this rank's slice, so a rank rounds without having seen the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BITS = {"int8": 8, "int4": 4}
GROUP = 32
# Weights are rounded so many at a time, which bounds the memory for their float32 copies.
AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class Rounded:
    """numbers int8 [out, in]; scales float32 [out, groups], each worth `group` inputs."""

    numbers: torch.Tensor
    scales: torch.Tensor
    group: int

    def restored(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] that they stand for."""
        restored = torch.empty(self.numbers.shape, dtype=dtype)
        for rows in _portions(*self.numbers.shape):
            scales = self.scales[rows].repeat_interleave(self.group, dim=1)[:, : self.numbers.shape[1]]
            restored[rows] = (self.numbers[rows] * scales).to(dtype)
        return restored


def rounded(weight: torch.Tensor, bits: int) -> Rounded:
    """weight [out, in] in 8 or 4 bits."""
    outputs, inputs = weight.shape
    group = inputs if bits == 8 else GROUP
    numbers = torch.empty(outputs, inputs, dtype=torch.int8)
    scales = torch.empty(outputs, -(-inputs // group))
    for rows in _portions(outputs, inputs):
        padded = torch.nn.functional.pad(weight[rows].float(), (0, scales.shape[1] * group - inputs)).unflatten(1, (-1, group))
        if bits == 8:
            steps = padded.abs().amax(dim=2) / 127
        else:
            largest = padded.gather(2, padded.abs().argmax(dim=2, keepdim=True)).squeeze(2)
            steps = (largest / -8).bfloat16().float()
        # A group of zeros has any scale.
        scales[rows] = torch.where(steps == 0, 1.0, steps)
        most = 127 if bits == 8 else 7
        exact = padded / scales[rows].unsqueeze(2)
        numbers[rows] = exact.round_().clamp_(-most if bits == 8 else -8, most).flatten(1)[:, :inputs].to(torch.int8)
    return Rounded(numbers, scales, group)


def _portions(outputs: int, inputs: int) -> list[slice]:
    size = max(1, AT_ONCE // inputs)
    return [slice(first, min(first + size, outputs)) for first in range(0, outputs, size)]
