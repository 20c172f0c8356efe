"""The emulator itself: that it computes what a GPU does, and that what a GPU would not forgive is an error here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels_cuda.kernel import Kernel
from kernels_cuda.launch import launch
from tests.cuda_on_cpu.comparing import integers, nan, random
from tests.cuda_on_cpu.emulator import EmulationError, emulated, headers
from tests.cuda_on_cpu.guarded import guarded

PROBES = Path(__file__).parent / "probes"


def run(entry: str, threads: int, *args: object, grid: tuple[int, ...] = (1,), shared: int = 0, seed: int = 0) -> None:
    with emulated(seed, PROBES):
        addresses = (arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args)
        launch(Kernel("probes.cu", entry), grid, (threads,), shared, *addresses)  # type: ignore[arg-type]


def test_a_build_depends_on_the_headers_it_includes_and_on_no_other(tmp_path: Path) -> None:
    """Those that others include too; the first folder that has one wins."""
    edited, plain = tmp_path / "edited", tmp_path / "plain"
    for folder in (edited, plain):
        folder.mkdir()
    (plain / "outer.cuh").write_text('#pragma once\n#include "inner.cuh"\n')
    (plain / "inner.cuh").write_text("// as it is")
    (plain / "unused.cuh").write_text("// not included")
    source = '#include <cuda_fp16.h>\n#include "outer.cuh"\n'
    assert headers(source, (edited, plain))[1:] == ["// as it is"]
    (edited / "inner.cuh").write_text("// with a bug")
    assert headers(source, (edited, plain))[1:] == ["// with a bug"]
    assert headers("int x;", (edited, plain)) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_indices(seed: int) -> None:
    out = integers([-1] * 24 * 30)
    with emulated(seed, PROBES):
        launch(Kernel("probes.cu", "indices"), (2, 3, 4), (5, 3, 2), 0, out.data_ptr())
    assert out.tolist() == [block * 10000 + thread for block in range(24) for thread in range(30)]


def test_votes() -> None:
    out = integers(np.zeros((6, 64)), torch.int32)
    run("votes", 64, out, seed=3)
    lanes = np.arange(64) % 32
    rows = out.numpy()
    assert (rows[0] == np.int32(sum(1 << lane for lane in range(0, 32, 3)))).all()
    assert (rows[1] == sum(range(32))).all()
    assert (rows[2].view(np.uint32) == 15 << (lanes // 4 * 4)).all()
    assert (rows[3] == np.where(lanes % 16 + 5 < 16, lanes + 5, lanes)).all()
    assert (rows[4] == 13).all() and (rows[5] == 1).all()


@pytest.mark.parametrize("seed", [0, 5])
def test_bulk_copies_and_mbarriers(seed: int) -> None:
    x, total = random(7 * 512, dtype=torch.float32), guarded(torch.zeros(1))
    run("ring_sum", 128, x, total, np.int32(7), seed=seed)
    assert abs(total.item() - x.double().sum().item()) < 1e-3


def test_atomics() -> None:
    ids = integers(np.random.default_rng(0).integers(0, 50, 1000))
    bins, highest = integers([0] * 50), integers([0])
    run("counts", 256, ids, np.int32(1000), bins, highest, grid=(4,))
    assert torch.equal(bins.long(), torch.bincount(ids.long(), minlength=50)) and highest.item() == ids.max().item()


def test_tensor_core() -> None:
    a, b, c = random(16, 16), random(16, 8, seed=1), nan(16, 8, dtype=torch.float32)
    run("tensor_core", 32, a, b, c)
    assert torch.allclose(c.double(), a.double() @ b.double(), atol=1e-5)


def test_e4m3_conversions_are_torchs() -> None:
    """Also the one without the instruction, which GPUs before sm_89 use: every e4m3 number, the midpoints between them and beyond."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    nearly = torch.cat((torch.nextafter(middles, middles * 2), torch.nextafter(middles, middles * 0)))
    x = torch.cat((numbers, middles, nearly, torch.tensor([1e-9, 449.0, 1e9, float("inf")])))
    x = guarded(torch.cat((x, -x)))
    first, second = (guarded(torch.zeros(len(x), dtype=torch.uint8)) for _ in range(2))
    run("to_e4m3", 64, x, first, second, np.int32(len(x)))
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(first, expected) and torch.equal(second, expected)


@pytest.mark.parametrize("entry,args,shared,message", [
    ("half_a_barrier", (), 0, "deadlock: 64 of 64 threads"),
    ("shuffle_in_a_branch", (64,), 0, "different collective"),
    ("outside_its_mask", (64,), 0, "lane 16 calls it but is not in its mask|lane 17 calls"),
    ("past_dynamic_shared", (np.int32(64), np.int32(1), 64), 256, "dynamic shared memory at byte 256 of 256"),
    ("past_dynamic_shared", (np.int32(64), np.int32(0), 64), 256, "dynamic shared memory at byte 256 of 256"),
    ("past_dynamic_shared", (np.int32(50), np.int32(1), 64), 200, "wrote dynamic shared memory at byte 200 of 200"),
    ("past_dynamic_shared", (np.int32(-2), np.int32(1), 64), 256, "wrote dynamic shared memory at byte -8 of 256"),
    ("misaligned_copy", (64,), 0, "cp.async: address not 16-byte aligned"),
    ("past_the_array", (16, np.int32(16), 16), 0, "that is not there"),
])  # fmt: skip
def test_what_a_gpu_would_not_forgive(entry: str, args: tuple, shared: int, message: str) -> None:
    """Small ints among the arguments stand for guarded arrays of so many floats."""
    arrays = [guarded(torch.zeros(arg)) if type(arg) is int else arg for arg in args]
    with pytest.raises(EmulationError, match=message):
        run(entry, 64, *arrays, shared=shared)


def test_the_next_launch_after_an_error_is_fine() -> None:
    with pytest.raises(EmulationError, match=r"block \(0,0,0\) thread"):
        run("past_the_array", 1, guarded(torch.zeros(4)), np.int32(500), guarded(torch.zeros(1)))  # inside the page that guards it
    test_tensor_core()


def test_unwritten_shared_memory_is_nan_in_each_block() -> None:
    out = guarded(torch.zeros(6))
    run("unwritten_shared", 1, out, grid=(3,), shared=16)
    assert out.isnan().all()


def test_a_copy_has_not_arrived_before_it_is_waited_for() -> None:
    x, out = guarded(torch.tensor([1.0, 2.0, 3.0, 4.0])), guarded(torch.zeros(1))
    run("reads_before_the_copy_arrives", 1, x, out, np.int32(0))
    assert out.isnan().all()
    run("reads_before_the_copy_arrives", 1, x, out, np.int32(1))
    assert out.item() == 4


def test_a_missing_barrier_shows_in_some_order_of_threads() -> None:
    results = []
    for seed in range(3):
        out = integers([0] * 64)
        run("unsynchronised", 64, out, seed=seed)
        results.append(out.tolist())
    assert len({tuple(result) for result in results}) > 1


@pytest.mark.parametrize("args,message", [
    ((64, 1.0, 64), "is float"),
    ((64, 5, 64), "argument 1 is a scalar of 4 bytes"),
    ((64, np.int64(5), 64), "has 4 bytes"),
    ((64, np.int32(5)), "takes 3 arguments, 2 given"),
    ((np.int32(1), np.int32(5), 64), "argument 0 is an address"),
])  # fmt: skip
def test_arguments_are_checked_against_the_signature(args: tuple, message: str) -> None:
    """CuPy would pass a float as a double and anything else as it comes, and the kernel would read garbage."""
    with pytest.raises(TypeError, match=message):
        run("past_the_array", 1, *args)


@pytest.mark.parametrize("grid,threads,shared", [((1,), 1025, 0), ((0,), 32, 0), ((1, 70000), 32, 0), ((1,), 32, 300_000)])
def test_launches_no_gpu_would_take(grid: tuple[int, ...], threads: int, shared: int) -> None:
    with pytest.raises(EmulationError, match="bad launch"):
        run("half_a_barrier", threads, grid=grid, shared=shared)
