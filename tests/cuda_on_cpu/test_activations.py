"""Gated activations against float64."""

from __future__ import annotations

import pytest
import torch

from kernels_cuda import activations, reference
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu.comparing import TOLERANCE, error, nan, random
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 256, 2048, 2056, 4104])
def test_gated(activation: str, dtype: torch.dtype, width: int) -> None:
    gate_up, out = guarded(random(3, 2 * width, dtype=dtype) * 3), nan(3, width, dtype=dtype)
    with emulated(seed=3):
        activations.gated(gate_up, out, activation)
    assert error(out, reference.gated(gate_up, activation)) < TOLERANCE[dtype]


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_every_width_in_every_order_of_threads(activation: str) -> None:
    """Each part of one and two warps, and around the ends of one and two blocks; the same bits in each order."""
    for width in [*range(8, 2 * 256 + 16, 8), 2040, 4088, 4096]:
        gate_up, results = random(2, 2 * width), []
        for seed in (0, 1, 2, 7):
            results.append(nan(2, width))
            with emulated(seed):
                activations.gated(gate_up, results[-1], activation)
        assert error(results[0], reference.gated(gate_up, activation)) < TOLERANCE[torch.bfloat16]
        assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_extreme_gates(activation: str) -> None:
    """exp over- and underflows for such gates; the activation is the gate itself, or nothing."""
    gates = torch.tensor([300.0, -300.0, 89.0, -89.0, 20.0, -20.0, 0.0, -0.0])
    gate_up, out = guarded(torch.cat((gates, torch.ones(8)))[None].bfloat16()), nan(1, 8)
    with emulated():
        activations.gated(gate_up, out, activation)
    assert torch.allclose(out.double(), reference.gated(gate_up, activation), rtol=4e-3, atol=1e-6)


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match="width 12"):
        activations.gated(random(1, 24), nan(1, 12), "silu")
    with pytest.raises(UnsupportedShape, match="relu"):
        activations.gated(random(1, 16), nan(1, 8), "relu")
