"""Rotary position embedding: tables of cosines and sines, made once, and their use.

Scalings: linear (positions divided), llama3 (long wavelengths divided, short ones kept, a ramp between) and YaRN (arXiv:2309.00071).
"""

from __future__ import annotations

import math

import torch

from gpu_workers.models.spec import RotarySpec


class Rotary:
    """cos_sin float32 [length, 2, dim / 2]."""

    def __init__(self, spec: RotarySpec, length: int, dtype: torch.dtype, device: torch.device) -> None:
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(spec))
        table = torch.stack((angles.cos(), angles.sin()), dim=1) * spec.attention_factor
        self.dim = spec.dim
        self.table = table.to(device)
        self._typed = self.table.to(dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, 1, dim / 2] in the model's dtype for positions [T]; gathered once per step."""
        cos, sin = self._typed[positions].unbind(1)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [T, heads, head_dim] with the first `dim` dimensions turned, halves against each other."""
        half = self.dim // 2
        first, second = x[..., :half], x[..., half : self.dim]
        turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
        return torch.cat(turned if self.dim == x.shape[-1] else (*turned, x[..., self.dim :]), dim=-1)


def frequencies(spec: RotarySpec) -> torch.Tensor:
    """Radians per position, float32 [dim / 2]."""
    plain = 1.0 / spec.theta ** (torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim)
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec, plain)
    return plain


def _llama3(spec: RotarySpec, plain: torch.Tensor) -> torch.Tensor:
    """Wavelengths above original / low_freq_factor are stretched by factor, those below original / high_freq_factor are kept."""
    turns = spec.original_length * plain / (2 * math.pi)  # full turns within the original context
    kept = ((turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0, 1)
    return plain / spec.factor * (1 - kept) + plain * kept


def _yarn(spec: RotarySpec, plain: torch.Tensor) -> torch.Tensor:
    """NTK by parts: dimensions with more than beta_fast turns in the original context are kept, below beta_slow are stretched."""

    def dimension(turns: float) -> float:
        return spec.dim * math.log(spec.original_length / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    ramp = (torch.arange(spec.dim // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    stretched = ramp.clamp(0, 1)
    return plain / spec.factor * stretched + plain * (1 - stretched)
