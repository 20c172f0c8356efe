"""add + RMS norm and LayerNorm against float64."""

from __future__ import annotations

import pytest
import torch

from kernels_cuda import norms, reference
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu.comparing import TOLERANCE, error, nan, random
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded

HIDDEN = [8, 64, 256, 264, 4096, 8192, 8200, 12288]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_add_rms_norm(hidden: int, dtype: torch.dtype) -> None:
    residual, delta, weight, out = (random(3, hidden, dtype=dtype, seed=s) for s in range(4))
    weight, out = guarded(weight[0]), nan(3, hidden, dtype=dtype)
    added = (residual.float() + 0.5 * delta.float()).to(dtype)
    with emulated(seed=3):
        norms.add_rms_norm(residual, delta, weight, out, 1e-5, scale=0.5, offset=1.0)
    assert torch.equal(residual, added)
    assert error(out, reference.rms_norm(added, weight, 1e-5, 1.0)) < TOLERANCE[dtype]


def test_every_length_to_beyond_two_warps() -> None:
    """The launcher takes a warp for each 256 numbers; these rows fill each part of one, two and three."""
    for at, hidden in enumerate(range(8, 2 * 256 + 16, 8)):
        residual, delta, weight, bias = (random(2, hidden, seed=s) for s in range(4))
        weight, bias, out, centred = guarded(weight[0]), guarded(bias[0]), nan(2, hidden), nan(2, hidden)
        added = (residual.float() + delta.float()).bfloat16()
        with emulated(seed=at):
            norms.layer_norm(residual, weight, bias, centred, 1e-5)
            before = residual.clone()
            norms.add_rms_norm(residual, delta, weight, out, 1e-5)
        assert torch.equal(residual, added)
        assert error(out, reference.rms_norm(added, weight, 1e-5)) < TOLERANCE[torch.bfloat16]
        assert error(centred, reference.layer_norm(before, weight, bias, 1e-5)) < TOLERANCE[torch.bfloat16]


def test_rms_norm_without_addition_leaves_its_input() -> None:
    x, weight, out = random(2, 512), random(512), nan(2, 512)
    before = x.clone()
    with emulated():
        norms.add_rms_norm(x, None, weight, out, 1e-6)
    assert torch.equal(x, before)
    assert error(out, reference.rms_norm(x, weight, 1e-6)) < TOLERANCE[torch.bfloat16]


def test_out_may_be_delta() -> None:
    residual, delta, weight = random(2, 512), random(2, 512, seed=1), random(512)
    added = residual + delta
    with emulated(seed=1):
        norms.add_rms_norm(residual, delta, weight, delta, 1e-6)
    assert error(delta, reference.rms_norm(added, weight, 1e-6)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_layer_norm(hidden: int, dtype: torch.dtype) -> None:
    """The mean is far from zero, where a variance by E[x^2] - E[x]^2 loses its digits."""
    x = guarded(random(2, hidden, dtype=dtype) + 30)
    weight, bias, out = random(hidden, dtype=dtype, seed=1), random(hidden, dtype=dtype, seed=2), nan(2, hidden, dtype=dtype)
    with emulated(seed=2):
        norms.layer_norm(x, weight, bias, out, 1e-5)
    assert error(out, reference.layer_norm(x, weight, bias, 1e-5)) < TOLERANCE[dtype]


def test_layer_norm_without_weight_and_bias() -> None:
    x, out = random(2, 768), nan(2, 768)
    with emulated():
        norms.layer_norm(x, None, None, out, 1e-5)
    assert error(out, reference.layer_norm(x, None, None, 1e-5)) < TOLERANCE[torch.bfloat16]


def test_a_row_does_not_depend_on_the_batch_or_on_the_order_of_threads() -> None:
    x, weight = random(5, 4096), random(4096)
    whole, alone = nan(5, 4096), nan(1, 4096)
    with emulated(seed=5):
        norms.add_rms_norm(x, None, weight, whole, 1e-5)
    with emulated(seed=8):
        norms.add_rms_norm(guarded(x[3:4]), None, weight, alone, 1e-5)
    assert torch.equal(whole[3:4], alone)


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match="hidden size 100 "):
        norms.layer_norm(random(1, 100), None, None, nan(1, 100), 1e-5)
    with pytest.raises(UnsupportedShape, match="hidden size 32776"):
        norms.layer_norm(random(1, 32776), None, None, nan(1, 32776), 1e-5)
    with pytest.raises(UnsupportedShape, match="dtypes differ"):
        norms.add_rms_norm(random(1, 64), None, random(64, dtype=torch.float16), nan(1, 64), 1e-5)
    with pytest.raises(UnsupportedShape, match="float32"):
        norms.layer_norm(random(1, 64, dtype=torch.float32), None, None, nan(1, 64, dtype=torch.float32), 1e-5)
