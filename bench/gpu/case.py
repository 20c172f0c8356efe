"""A kernel with inputs on the device, what it must give, and the least it has to move and to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

# A correct kernel's relative error is its output's rounding plus, in attention, that of the probabilities.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}


@dataclass(frozen=True)
class Case:
    """run launches on tensors that are there already; error compares what the last run left with the reference (0 where it must be equal).

    outputs: filled with NaN or -7 before the run that is checked, so that what is not written shows.
    comparable: how many of the outputs, from the first on, are the same on every machine: scratch is not.
    moved, flops: bytes that must be read or written at least, and operations of the tensor cores.
    """

    name: str
    run: Callable[[], None]
    error: Callable[[], float]
    tolerance: float
    outputs: tuple[torch.Tensor, ...]
    moved: int = 0
    flops: int = 0
    comparable: int = 1


@dataclass(frozen=True)
class Inputs:
    """Random tensors of one device; two of the same seed draw the same numbers, on every device."""

    device: str
    seed: int = 0

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
        """Drawn in pieces on the CPU where they are few, else on the device, where the seed holds for that kind of device alone."""
        count = 1
        for length in shape:
            count *= length
        where = "cpu" if count < 1 << 22 else self.device
        source = torch.Generator(device=where).manual_seed(1000 * self.seed + seed)
        wide = torch.randn(shape, generator=source, device=where, dtype=torch.float32 if where == "cpu" else torch.bfloat16)
        return wide.to(self.device, dtype)

    def ints(self, values: Any, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """A copy of integers."""
        return torch.as_tensor(values).to(self.device, dtype)

    def unwritten(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """An output."""
        made = torch.empty(shape, dtype=dtype, device=self.device)
        poison(made)
        return made


def poison(tensor: torch.Tensor) -> None:
    """NaN, or -7 for integers."""
    tensor.fill_(float("nan") if tensor.is_floating_point() else -7)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm; infinite when something is not finite."""
    got, expected = got.double(), expected.double()
    return float((got - expected).norm() / expected.norm()) if bool(got.isfinite().all()) else float("inf")


def different(*pairs: tuple[torch.Tensor, torch.Tensor]) -> float:
    """How many integers differ."""
    return float(sum(int((a.cpu() != b.cpu()).sum()) for a, b in pairs))


# partial(function, inputs, name, ...), so that a case's name is known before its tensors are made.
Builders = Iterator[partial[Case]]
