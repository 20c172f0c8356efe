"""The CPU's compiled small operations compute what torch's do, for sizes that fill no vector as well."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from gpu_workers.layers.cpu_ops import CPUOps
from gpu_workers.layers.ops import Ops

SHAPES = [(1, 16), (3, 7), (5, 100), (33, 4096)]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def ops(request: pytest.FixtureRequest) -> CPUOps:
    made = CPUOps(request.param, 2)
    assert made.wait(250)
    return made


def tolerance(ops: CPUOps) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if ops._dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms(ops: CPUOps, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, delta, weight = (torch.randn(size).to(ops._dtype) for size in (shape, shape, shape[1:]))
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), Ops().rms_norm(x, weight, 1e-5), **tolerance(ops))
    ours, theirs = x.clone(), x.clone()
    normed = ops.add_rms_norm(ours, delta, 0.5, weight, 1e-5)
    torch.testing.assert_close(normed, Ops().add_rms_norm(theirs, delta, 0.5, weight, 1e-5), **tolerance(ops))
    torch.testing.assert_close(ours, theirs, **tolerance(ops))


@pytest.mark.parametrize("shape", [(1, 32), (3, 14), (5, 200), (33, 4096)], ids=str)
def test_gated(ops: CPUOps, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 4).to(ops._dtype)
    torch.testing.assert_close(ops.gated(x, "silu"), Ops().gated(x, "silu"), **tolerance(ops))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 4097), (0, 50)], ids=str)
def test_most_likely(ops: CPUOps, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """With many equals: of few values, the lowest place of the largest is wanted."""
    torch.manual_seed(0)
    for x in (torch.randn(shape), torch.randint(-3, 3, shape).float(), torch.full(shape, -0.0), torch.full(shape, float("inf"))):
        x = x.to(dtype)
        (ids, top), (wanted, largest) = ops.most_likely(x), Ops().most_likely(x)
        assert np.array_equal(ids, wanted) and np.array_equal(top, largest)


@pytest.mark.parametrize("width", [5, 16, 50])
def test_most_likely_of_zeros_of_both_signs(ops: CPUOps, width: int) -> None:
    x = torch.full((1, width), -1.0).to(ops._dtype)
    x[0, width - 1], x[0, 2] = 0.0, -0.0
    assert ops.most_likely(x)[0][0] == 2


@pytest.mark.parametrize("place", [0, 17, 49])
def test_a_row_that_is_no_use(ops: CPUOps, place: int) -> None:
    """A NaN of either sign shows, wherever it is, in its row alone; so do rows of -inf."""
    for nan in (float("nan"), -float("nan")):
        x = torch.randn(4, 50).to(ops._dtype)
        x[1, place] = nan
        x[3] = -float("inf")
        ids, top = ops.most_likely(x)
        assert np.isfinite(top).tolist() == [True, False, True, False] and np.isnan(top[1])
        assert np.array_equal(ids[[0, 2]], Ops().most_likely(x)[0][[0, 2]])


# Both with more elements than a thread does alone, and the second time when the first has its threads.
SHARING = """
import os, torch
from gpu_workers.layers.cpu_ops import CPUOps
torch.set_num_threads(3)
ops, x = CPUOps(torch.float32, 3), torch.ones(512, 512)
assert ops.wait(250), "not compiled"
torch.exp(x)
before = len(os.listdir("/proc/self/task"))
ops.rms_norm(x, x[0], 1e-5)
print(before, len(os.listdir("/proc/self/task")))
"""


def test_kernels_run_on_torchs_own_threads() -> None:
    before, after = subprocess.run([sys.executable, "-c", SHARING], capture_output=True, text=True, check=True).stdout.split()
    assert before == after
