"""What the kernel tests share: inputs whose surroundings are NaN and out of bounds, and the measure of an error."""

from __future__ import annotations

import torch

from tests.cuda_on_cpu.guarded import guarded

# A correct kernel's relative error is its output's rounding plus, in attention, that of the probabilities.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Normal numbers that end at a page that may not be touched."""
    return guarded(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def nan(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """NaN, for outputs: what the kernel does not write shows."""
    return guarded(torch.full(shape, float("nan")).to(dtype))


def integers(values: object, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A guarded copy of integers."""
    return guarded(torch.as_tensor(values).to(dtype))


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm; infinite when something is not finite."""
    got = got.double()
    return float((got - expected).norm() / expected.norm()) if bool(got.isfinite().all()) else float("inf")
