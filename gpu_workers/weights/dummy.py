"""Random weights of the right shape, for benchmarks: the same on every start, and the same model for any number of ranks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from gpu_workers.weights.part import Part
from gpu_workers.weights.safetensors_files import Progress

AMPLITUDE = 0.02


def load(parts: Sequence[Part], progress: Progress) -> None:
    """Fill norms with ones and everything else with uniform values in (-AMPLITUDE, AMPLITUDE), seeded by the part's name."""
    total, done = sum(part.target.nbytes for part in parts), 0
    for part in parts:
        if part.name.endswith("norm.weight"):
            part.target.fill_(1.0)
        else:
            device = part.target.device  # a GPU makes billions of numbers in seconds, the CPU in minutes; each its own
            generator = torch.Generator(device).manual_seed(zlib.crc32(part.name.encode()))
            whole = torch.empty(part.shape, dtype=part.target.dtype, device=device)
            whole.uniform_(-AMPLITUDE, AMPLITUDE, generator=generator)
            part.target.copy_(part.slice(whole))
        done += part.target.nbytes
        progress(done, total)
