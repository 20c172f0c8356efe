"""Runs one kernel under ThreadSanitizer; test_races.py starts it with libtsan preloaded. No torch here: it is slow and noisy under TSan.

python -m tests.cuda_on_cpu.race_run SOURCES CASE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kernels_cuda import activations, logprobs, mla_decode, norms, paged_decode, paged_prefill, paged_prefill_wgmma, qkv, rows, sampler
from kernels_cuda.launch import use_backend
from tests.cuda_on_cpu.emulator import Emulator

FLAGS = ("-fsanitize=thread", "-fno-omit-frame-pointer", "-g1")  # with lines, for the reports


class Array:
    """As much of a tensor as launchers ask for, over numpy; 16-bit floats are their bits."""

    def __init__(self, values: np.ndarray, dtype: str) -> None:
        self.values, self.dtype, self.shape, self.ndim = np.ascontiguousarray(values), f"torch.{dtype}", values.shape, values.ndim

    def data_ptr(self) -> int:
        return int(self.values.ctypes.data)

    def is_contiguous(self) -> bool:
        return True

    def numel(self) -> int:
        return self.values.size

    def stride(self, axis: int | None = None) -> Any:
        strides = tuple(stride // self.values.itemsize for stride in self.values.strides)
        return strides if axis is None else strides[axis]

    def __len__(self) -> int:
        return len(self.values)


def bf16(*shape: int) -> Array:
    return Array((np.random.default_rng(0).standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), "bfloat16")


def int32(values: Any) -> Array:
    return Array(np.asarray(values, np.int32), "int32")


def decode() -> None:
    length, heads, kv_heads, dim = 300, 8, 1, 128  # tiles enough to fill each stage again
    pages = -(-length // 16)
    plan = paged_decode.plan_decode(np.array([length], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), kv_heads, 4, 0, 256)
    caches = bf16(pages, kv_heads, 16, dim), bf16(pages, kv_heads, 16, dim)
    scratch = (
        Array(np.zeros((len(plan.work), heads, dim), np.float32), "float32"),
        Array(np.zeros((len(plan.work), heads), np.float32), "float32"),
    )
    tables = int32(np.arange(pages)[None])
    paged_decode.decode_attention(
        bf16(1, heads, dim), *caches, tables, int32(plan.work), int32(plan.merges), *scratch, bf16(1, heads, dim), 0.1
    )


def prefilled() -> None:
    past, new, heads, dim, pages = 140, 40, 4, 128, 12
    plan = paged_prefill.plan_prefill(*(np.array([value], np.int32) for value in (new, past, 0, 0)), heads)
    caches = bf16(pages, 1, 16, dim), bf16(pages, 1, 16, dim)
    tables, out = int32(np.arange(pages)[None]), bf16(new, heads, dim)
    paged_prefill.prefill_attention(bf16(new, heads, dim), *caches, tables, int32(plan.work), int32(plan.chunks), out, 0.1)


def warpgroups() -> None:
    """Each stage of K and V used again, rows for both warpgroups."""
    past, new, heads, dim, pages = 300, 40, 2, 128, 22
    plan = paged_prefill.plan_prefill(*(np.array([value], np.int32) for value in (new, past, 0, 0)), heads)
    caches = bf16(pages, 1, 16, dim), bf16(pages, 1, 16, dim)
    tables, out = int32(np.arange(pages)[None]), bf16(new, heads, dim)
    paged_prefill_wgmma.prefill_attention(bf16(new, heads, dim), *caches, tables, int32(plan.work), int32(plan.chunks), out, 0.1)


def latent() -> None:
    length, heads = 100, 16
    plan = paged_decode.plan_decode(np.array([length], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), 1, 4, 0, 64)
    pages = -(-length // 16)
    scratch = (
        Array(np.zeros((len(plan.work), heads, mla_decode.LATENT), np.float32), "float32"),
        Array(np.zeros((len(plan.work), heads), np.float32), "float32"),
    )
    tables = int32(np.arange(pages)[None])
    q = bf16(1, heads, mla_decode.LATENT), bf16(1, heads, mla_decode.ROPE)
    mla_decode.mla_attention(
        *q,
        bf16(pages, 16, mla_decode.WIDTH),
        tables,
        int32(plan.work),
        int32(plan.merges),
        *scratch,
        bf16(1, heads, mla_decode.LATENT),
        0.1,
    )


def normed() -> None:
    norms.layer_norm(bf16(1, 2048), None, None, bf16(1, 2048), 1e-5)
    norms.add_rms_norm(bf16(1, 2048), bf16(1, 2048), bf16(2048), bf16(1, 2048), 1e-5)
    activations.gated(bf16(1, 4096), bf16(1, 2048), "silu")


def rotated() -> None:
    slots, positions = Array(np.array([3, 5], np.int64), "int64"), int32([0, 1])
    table = qkv.RotaryTable(Array(np.ones((2, 2, 64), np.float32), "float32"), 128)
    qkv.norm_rotate_write(bf16(2, 6, 128), bf16(2, 4, 128), bf16(1, 1, 16, 128), bf16(1, 1, 16, 128), slots, positions, table)


def gathered() -> None:
    n = 1100
    count = np.array([n], np.int64)
    plan = rows.StepColumns(*(int32(np.full(n, value)) for value in (0, 1, 3, 1, 9)), count.ctypes.data)
    tokens = [int32(np.zeros(n)), int32(np.zeros(n)), Array(np.zeros(n, np.int64), "int64"), int32(np.zeros(n))]
    out = rows.StepTensors(*tokens, int32(np.zeros(n + 1)), int32(np.zeros(n)), int32(np.zeros(n)))
    rows.gather_inputs(plan, int32(np.zeros((1, 4))), int32(np.zeros(1)), 16, out)


def sampled() -> None:
    vocab = 2600  # two tiles; a row with every feature
    logits = Array(np.random.default_rng(0).standard_normal((1, vocab)).astype(np.float32), "float32")
    wishes = sampler.Wishes(
        *(Array(np.full(1, 0.9, np.float32), "float32"), Array(np.full(1, 1e-3, np.float32), "float32"), int32([300])),
        *(Array(np.array([0.8]), "float64"), Array(np.array([5], np.int64), "int64")),
    )
    spans, ids, one = int32([[0, 3]]), int32([3, 200, 2100]), Array(np.ones(1, np.float32), "float32")
    tallies = sampler.Tallies(int32(np.zeros((1, vocab))), int32([0]), one, one, one)
    starts = Array(np.array([0, 5], np.int64), "int64")
    sampler.tally_history(tallies.tally, int32([0]), int32([1, 1, 900, 900, 5]), starts, int32([2]))
    work = sampler.Workspace(
        Array(np.zeros((1, vocab), np.float32), "float32"), Array(np.zeros((1, 1, sampler.PARTIAL), np.int64), "int64")
    )
    sampler.sample(
        *(logits, int32([0]), Array(np.array([9], np.int64), "int64"), wishes, work, int32([0]), int32([0])),
        masks=sampler.Masks(int32(np.full((1, -(-vocab // 32)), -1)), int32([0])),
        edits=sampler.Edits(ids, Array(np.ones(3, np.float32), "float32"), spans),
        stops=sampler.Stops(ids, int32([[1, 2]]), Array(np.array([99], np.int64), "int64")),
        tallies=tallies,
    )


def reported() -> None:
    logits = Array(np.repeat(np.random.default_rng(0).standard_normal(50).astype(np.float32), 20)[None], "float32")  # ties
    floats = [Array(np.zeros(shape, np.float32), "float32") for shape in ((1,), (1, 30))]
    logprobs.report_logprobs(logits, int32([0]), int32([7]), int32([30]), floats[0], int32([0]), int32(np.zeros((1, 30))), floats[1])


CASES = {
    "decode": decode,
    "prefilled": prefilled,
    "warpgroups": warpgroups,
    "latent": latent,
    "normed": normed,
    "rotated": rotated,
    "gathered": gathered,
    "sampled": sampled,
    "reported": reported,
}

if __name__ == "__main__":
    with use_backend(Emulator(0, Path(sys.argv[1]), FLAGS)):
        CASES[sys.argv[2]]()
    print("done", flush=True)
    os._exit(0)  # destructors at exit would be reported as racing with the threads of blocks long gone
