"""The emulator's wgmma: descriptors and layouts as the PTX manual says, and mistakes around an asynchronous product that are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels_cuda.build import cache, nvrtc
from kernels_cuda.build.cache import Target
from kernels_cuda.build.resources import Resources
from kernels_cuda.kernel import Kernel, defines
from kernels_cuda.launch import launch
from tests.cuda_on_cpu.comparing import nan, random
from tests.cuda_on_cpu.emulator import EmulationError, emulated
from tests.cuda_on_cpu.guarded import guarded

PROBES = Path(__file__).parent / "probes"
SOURCE = "wgmma.cu"
PIECE = 8  # 16-bit numbers of 16 bytes
SWIZZLES = {0: 1, 3: 2, 2: 4, 1: 8}  # mode of a descriptor: 16-byte pieces in a row of its pattern


def descriptor(start: int, leading: int, stride: int, mode: int) -> int:
    """Bytes, relative to the start of shared memory."""
    value = start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62
    return value - (1 << 64) if value >> 63 else value


class Image:
    """Shared memory as 16-byte pieces, written through the swizzle of a mode."""

    def __init__(self, size: int) -> None:
        self.numbers = torch.full((size // 2,), float("nan"), dtype=torch.bfloat16)

    def put(self, address: int, mode: int, piece: torch.Tensor) -> None:
        place = address // 16 ^ (address // 128 % SWIZZLES[mode])
        assert self.numbers[place * PIECE : (place + 1) * PIECE].isnan().all(), "two pieces at one place"
        self.numbers[place * PIECE : (place + 1) * PIECE] = piece

    def put_along_k(self, matrix: torch.Tensor, start: int, leading: int, stride: int, mode: int) -> None:
        """[rows, 16]: groups of 8 rows `stride` bytes apart; without a swizzle, pieces `leading` bytes apart."""
        for row in range(len(matrix)):
            for piece in range(2):
                at = start + row // 8 * stride + row % 8 * SWIZZLES[mode] * 16 + piece * (16 if mode else leading)
                self.put(at, mode, matrix[row, piece * PIECE : (piece + 1) * PIECE])

    def put_along_n(self, matrix: torch.Tensor, start: int, leading: int, stride: int, mode: int) -> None:
        """[16, columns]: rows of a pattern, patterns of 8 rows; the two offsets change their meaning without a swizzle."""
        width, (per_columns, per_rows) = SWIZZLES[mode], (leading, stride) if mode else (stride, leading)
        for k in range(16):
            for piece in range(matrix.shape[1] // PIECE):
                at = start + piece // width * per_columns + piece % width * 16 + k % 8 * width * 16 + k // 8 * per_rows
                self.put(at, mode, matrix[k, piece * PIECE : (piece + 1) * PIECE])


def product(image: Image, a: int, b: int, values: bool, in_registers: torch.Tensor) -> torch.Tensor:
    out = nan(64, 64 if values else 128, dtype=torch.float32)
    numbers = guarded(image.numbers)
    with emulated(1, PROBES):
        launch(
            Kernel(SOURCE, "by_descriptor"), (1,), (128,), numbers.numel() * 2, numbers.data_ptr(), np.int32(numbers.numel() // PIECE),
            np.int64(a), np.int64(b), np.int32(values), in_registers.data_ptr(), out.data_ptr(),
        )  # fmt: skip
    return out


@pytest.mark.parametrize("mode", SWIZZLES)
def test_operands_along_k(mode: int) -> None:
    """Also from the middle of a pattern's rows, as a step along K begins there."""
    a, b, row = random(64, 16), random(128, 16, seed=1), SWIZZLES[mode] * 16
    for inside in (0,) if row < 64 else (0, 32):
        image, apart = Image(48 << 10), 8 * row + (0 if mode else 128)  # without a swizzle groups may lie anywhere
        image.put_along_k(a, inside, 16384, apart, mode)
        image.put_along_k(b, 20480 + inside, 4096, apart, mode)
        at_a, at_b = descriptor(inside, 16384, apart, mode), descriptor(20480 + inside, 4096, apart, mode)
        out = product(image, at_a, at_b, False, a)
        assert torch.allclose(out.double(), a.double() @ b.double().T, atol=1e-5)


@pytest.mark.parametrize("mode", SWIZZLES)
def test_values_along_n(mode: int) -> None:
    a, b = random(64, 16), random(16, 64, seed=1)
    image, leading, stride = Image(48 << 10), 8192, 1024 if mode else 256
    image.put_along_n(b, 1024, leading, stride, mode)
    out = product(image, 0, descriptor(1024, leading, stride, mode), True, a)
    assert torch.allclose(out.double(), a.double() @ b.double(), atol=1e-5)


FAULTS = (
    "NONE NO_PROXY_FENCE NO_FENCE NO_COMMIT NO_WAIT WAIT_ONE_SHORT OVERWRITTEN SUMS_TOUCHED OPERAND_TOUCHED WRONG_STRIDE DISAGREE "
    "UNSWIZZLED FENCE_TOO_EARLY NEVER_COPIED REGISTERS"
).split()


def two_products(fault: str, dtype: str = "BF16", seed: int = 0) -> tuple[bool, bool]:
    """Whether s and o are right."""
    kind = torch.bfloat16 if dtype == "BF16" else torch.float16
    q, k, v = (random(rows, 64, dtype=kind, seed=at) for at, rows in enumerate((64, 128, 128)))
    s, o = nan(64, 128, dtype=torch.float32), nan(64, 64, dtype=torch.float32)
    with emulated(seed, PROBES):
        addresses = (t.data_ptr() for t in (q, k, v, s, o))
        kernel = Kernel(SOURCE, "two_products", defines(**{f"DTYPE_{dtype}": 1}))
        launch(kernel, (1,), (384,), 40 << 10, *addresses, np.int32(FAULTS.index(fault)))
    scores = q.double() @ k.double().T
    wanted = scores.to(kind).double() @ v.double()
    return torch.allclose(s.double(), scores, atol=1e-4), torch.allclose(o.double(), wanted, rtol=1e-2, atol=5e-1)


@pytest.mark.parametrize("dtype", ["BF16", "FP16"])
@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_two_chained_groups(dtype: str, seed: int) -> None:
    assert two_products("NONE", dtype, seed) == (True, True)


@pytest.mark.parametrize("fault,message", [
    ("NO_PROXY_FENCE", "no fence.proxy.async since the copy"),
    ("FENCE_TOO_EARLY", "no fence.proxy.async since the copy"),
    ("NO_FENCE", "without a wgmma.fence since the kernel's start"),
    ("NO_WAIT", "which a wgmma under way may read"),
    ("NO_COMMIT", "which a wgmma under way may read"),
    ("OVERWRITTEN", "which a wgmma under way may read"),
    ("SUMS_TOUCHED", "accumulators were written before"),
    ("OPERAND_TOUCHED", "registers of A were written before"),
    ("DISAGREE", "do not agree"),
    ("NEVER_COPIED", "to which no cp.async has come"),
    ("REGISTERS", "232 registers per thread never become free"),
])  # fmt: skip
def test_a_mistake_is_an_error(fault: str, message: str) -> None:
    for seed in (0, 2):
        with pytest.raises(EmulationError, match=message):
            two_products(fault, seed=seed)


@pytest.mark.parametrize("fault", ["WAIT_ONE_SHORT", "WRONG_STRIDE", "UNSWIZZLED"])
def test_a_mistake_gives_wrong_numbers(fault: str) -> None:
    assert False in two_products(fault)


@pytest.mark.skipif(not nvrtc.available(), reason=f"NVRTC is not installed: {nvrtc.HOW_TO_INSTALL}")
@pytest.mark.parametrize("dtype", ["BF16", "FP16"])
def test_every_instruction_of_hopper_cuh_assembles(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (*cache.SOURCES.glob("*.cuh"), PROBES / SOURCE):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(cache, "SOURCES", tmp_path)
    path = cache.compile_into(Target(SOURCE, defines(**{f"DTYPE_{dtype}": 1}), "90a"), tmp_path)
    usage = json.loads(path.with_suffix(".json").read_text())
    faults = {entry: Resources(**numbers).faults(255) for entry, numbers in usage.items()}
    assert faults["by_descriptor"] == []
    assert [fault[:37] for fault in faults["two_products"]] == ["has its wgmma serialized by the compi"]  # by its mistakes
