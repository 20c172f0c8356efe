"""Bugs planted in the kernels' sources: the tests of this folder would catch each, by a wrong value, by bits that differ between orders of
threads, or by an error. What only the race check finds is in test_races.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels_cuda import activations, norms, paged_decode, qkv, reference
from tests.cuda_on_cpu import emulator, test_paged_decode, test_qkv
from tests.cuda_on_cpu.comparing import TOLERANCE, error, nan, random
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError

Run = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def decode() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [1, 16, 23, 100, 171]
    cache, q = test_paged_decode.make_cache(lengths, 2, 128), random(len(lengths), 8, 128)
    return test_paged_decode.attend(cache, q, lengths, fixed_split=128), test_paged_decode.expected(cache, q)


def windowed() -> tuple[torch.Tensor, torch.Tensor]:
    cache, q = test_paged_decode.make_cache([90], 2, 128, visible=40), random(1, 8, 128)
    return test_paged_decode.attend(cache, q, [90], window=40), test_paged_decode.expected(cache, q, window=40)


def fp8() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [20, 100]
    cache, q = test_paged_decode.make_cache(lengths, 2, 128, torch.float8_e4m3fn), random(2, 8, 128)
    return test_paged_decode.attend(cache, q, lengths), test_paged_decode.expected(cache, q)


def rotated() -> tuple[torch.Tensor, torch.Tensor]:
    values = random(test_qkv.TOKENS, test_qkv.HEADS + 2 * test_qkv.KV_HEADS, 128)
    got, want = (torch.cat([part.double().flatten() for part in parts])
                 for parts in (test_qkv.run(values, 128, False, None), test_qkv.expected(values, 128, False, None)))  # fmt: skip
    return got, want


def normed() -> tuple[torch.Tensor, torch.Tensor]:
    x, out = random(2, 2048), nan(2, 2048)
    norms.layer_norm(x, None, None, out, 1e-5)
    return out, reference.layer_norm(x, None, None, 1e-5)


def added() -> tuple[torch.Tensor, torch.Tensor]:
    residual, delta, weight, out = random(2, 1032), random(2, 1032, seed=1), random(1032, seed=2), nan(2, 1032)
    total = (residual.float() + 0.5 * delta.float()).bfloat16()
    norms.add_rms_norm(residual, delta, weight, out, 1e-5, 0.5, 1.0)
    return torch.cat((residual, out)), torch.cat((total.double(), reference.rms_norm(total, weight, 1e-5, 1.0)))


def gated() -> tuple[torch.Tensor, torch.Tensor]:
    gate_up, out = random(2, 528), nan(2, 264)
    activations.gated(gate_up, out, "silu")
    return out, reference.gated(gate_up, "silu")


@dataclass(frozen=True)
class Bug:
    """`old` is replaced by `new` once in `file`; `run` must then go wrong."""

    name: str
    file: str
    old: str
    new: str
    run: Run
    every_time: bool = True  # in each order of threads; otherwise in some


DECODE = "paged_decode.cu"
BUGS = [
    Bug("the wait is one cp.async group short", DECODE, "cp_async_wait<STAGES - 1>();", "cp_async_wait<STAGES>();", decode),
    Bug("no barrier before shared memory is used again", DECODE,
        "  __syncthreads();                                 // the rings", "//", decode, every_time=False),
    Bug("no barrier before the warps' results are read", DECODE,
        "  __syncthreads();\n  for (int head", "  for (int head", decode, every_time=False),
    Bug("a shuffle in a divergent branch", DECODE, "m < 32; m <<= 1) highest", "m < 32; m <<= 1) if (t) highest", decode),
    Bug("a barrier in a divergent branch", DECODE, "if (g == 0) {", "if (g == 0) { __syncthreads();", decode),
    Bug("the tail is not filled with zeros", DECODE, "token >= begin && token < end;", "token >= begin;", decode),
    Bug("what lies before the window is not filled with zeros", DECODE, "token >= begin && token < end;", "token < end;", windowed),
    Bug("the mask lets one token too many in", DECODE, "token >= end) s[c]", "token > end) s[c]", decode),
    Bug("the window lets one token too many in", DECODE, "if (token < begin ||", "if (token < begin - 1 ||", windowed),
    Bug("ldmatrix reads the wrong rows of K", DECODE, "tile + (lane & 15) * PITCH + (2 * k", "tile + (lane & 7) * PITCH + (2 * k", decode),
    Bug("ldmatrix reads the wrong chunk of V", DECODE, "(2 * n + (lane >> 3 & 1))", "(2 * n + (lane >> 4 & 1))", decode),
    Bug("a block-table entry past the end is read", DECODE,
        "return tile < last ? table[tile * TILE / block_size] : 0;", "return table[tile * TILE / block_size];", decode),
    Bug("the query heads of a neighbouring group are used", DECODE, "query[k][r] = g < heads_here ?", "query[k][r] = true ?", decode),
    Bug("the merge forgets the last split", "merge.cuh", "item < merge.y; item++", "item < merge.y - 1; item++", decode),
    Bug("fp8 dimension pairs are swapped", DECODE,
        "a[0] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4420));", "a[0] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4431));", fp8),
    Bug("no warp barrier before partners are read", "qkv.cu", "  __syncwarp();\n", "", rotated),
    Bug("the rotation's sign is wrong", "qkv.cu", "(first ? -partner : partner)", "(first ? partner : -partner)", rotated),
    Bug("the scratch of a block sum is used again too early", "common.cuh",
        "scratch[lane] : 0.f);\n  __syncthreads();", "scratch[lane] : 0.f);", normed, every_time=False),
    Bug("what is added is stored in the place of the sum", "norms.cu",
        "store16(residual + row + at, kept[v]);\n        unpack8(kept[v], x);", "store16(residual + row + at, pack8(d));", added),
    Bug("the weight's offset is forgotten", "norms.cu", "factor * (w[i] + offset)", "factor * w[i]", added),
    Bug("the mean is not taken off for the variance", "norms.cu", "(a[i] - mean) * (a[i] - mean)", "a[i] * a[i] + 1.f", normed),
    Bug("v is turned, too", "qkv.cu", "if (!is_v && at < rotary)", "if (at < rotary)", rotated),
    Bug("padding is written", "qkv.cu", "if (slot < 0) return;", "", rotated),
    Bug("the bound of a vector access is off", "activations.cu", "if (at >= width) return;", "", gated),
]  # fmt: skip
ORDERS = (0, 1, 2, 7)


def goes_wrong(run: Run, sources: Path) -> list[str]:
    """Per order of threads what is wrong, an empty string for nothing."""
    found, results = [], []
    for seed in ORDERS:
        try:
            got, want = in_order(run, sources, seed)
        except EmulationError as caught:
            found.append(f"error: {caught}")
            continue
        wrong = error(got, want)
        results.append(got)
        tolerance = TOLERANCE[torch.bfloat16]
        found.append(f"relative error {wrong:.1e}" if wrong > tolerance else "" if torch.equal(got, results[0]) else "other bits")
    return found


def in_order(run: Run, sources: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`run`, whose own choice of order and sources is overruled."""
    modules = (test_paged_decode, test_qkv)
    backend = emulator.emulated
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "emulated", lambda seed=0, order=seed: backend(order, sources))
        with backend(seed, sources):
            return run()


@pytest.mark.parametrize("run", [decode, windowed, fp8, rotated, normed, added, gated])
def test_nothing_is_found_in_the_sources_as_they_are(run: Run) -> None:
    assert goes_wrong(run, SOURCES) == [""] * len(ORDERS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / bug.file).read_text()
    assert bug.old in text
    (tmp_path / bug.file).write_text(text.replace(bug.old, bug.new, 1))
    found = goes_wrong(bug.run, tmp_path)
    assert all(found) if bug.every_time else any(found), found


def test_too_little_shared_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = paged_decode.shared_bytes
    monkeypatch.setattr(paged_decode, "shared_bytes", lambda *args: right(*args) - 32)  # the last 16 bytes are the last row's padding
    with pytest.raises(EmulationError, match="dynamic shared memory at byte"):
        decode()


def test_a_wrong_head_count_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that starts too few blocks leaves NaN in its output."""
    monkeypatch.setattr(qkv, "lanes_of", lambda head_dim: 2)
    got, want = rotated()
    assert np.isinf(error(got, want))
