"""q/k norm, rotary embedding and KV write against float64."""

from __future__ import annotations

import pytest
import torch

from kernels_cuda import reference
from kernels_cuda.errors import UnsupportedShape
from kernels_cuda.qkv import HeadNorms, RotaryTable, norm_rotate_write
from tests.cuda_on_cpu.comparing import TOLERANCE, error, integers, nan, random
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded

TOKENS, HEADS, KV_HEADS, BLOCK, BLOCKS = 5, 6, 2, 16, 4
SLOTS = [3, 17, -1, 63, 0]
POSITIONS = [0, 1, 99, 40, 7]
WRITTEN = [at for at, slot in enumerate(SLOTS) if slot >= 0]


def table(dim: int) -> torch.Tensor:
    angles = torch.outer(torch.arange(100.0), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
    return guarded(torch.stack((angles.cos(), angles.sin()), 1))


def at_slots(cache: torch.Tensor) -> torch.Tensor:
    """[tokens written, kv_heads, head_dim] of a cache; everything else must still be NaN."""
    flat = cache.double().transpose(1, 2).reshape(BLOCKS * BLOCK, KV_HEADS, -1)
    slots = [SLOTS[at] for at in WRITTEN]
    others = [slot for slot in range(BLOCKS * BLOCK) if slot not in slots]
    assert flat[others].isnan().all()
    return flat[slots]


def run(
    qkv: torch.Tensor, dim: int, interleaved: bool, norms: HeadNorms | None, cache: torch.dtype | None = None, **scales: torch.Tensor
) -> list:
    head_dim = qkv.shape[2]
    k, v = (nan(BLOCKS, KV_HEADS, BLOCK, head_dim, dtype=cache or qkv.dtype) for _ in range(2))
    q = nan(TOKENS, HEADS, head_dim, dtype=qkv.dtype)
    with emulated(seed=3):
        rotary = RotaryTable(table(dim), dim, interleaved)
        norm_rotate_write(qkv, q, k, v, integers(SLOTS, torch.int64), integers(POSITIONS), rotary, norms, **scales)
    return [q, at_slots(k), at_slots(v)]


def expected(qkv: torch.Tensor, dim: int, interleaved: bool, norms: HeadNorms | None) -> list:
    q, k, v = qkv.double().split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    if norms:
        q = reference.rms_norm(q, norms.q_weight, norms.eps, norms.offset)
        k = reference.rms_norm(k, norms.k_weight, norms.eps, norms.offset)
    q, k = (reference.rotate(x, torch.tensor(POSITIONS), table(dim), dim, interleaved) for x in (q, k))
    return [q, k[WRITTEN], v[WRITTEN]]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "head_dim,dim", [(32, 32), (32, 8), (64, 64), (64, 16), (80, 80), (80, 20), (96, 96), (128, 128), (128, 0), (256, 64)]
)
@pytest.mark.parametrize("normed", [False, True])
def test_norm_rotate_write(head_dim: int, dim: int, interleaved: bool, normed: bool) -> None:
    qkv = random(TOKENS, HEADS + 2 * KV_HEADS, head_dim)
    norms = HeadNorms(random(head_dim, seed=1), random(head_dim, seed=2), 1e-6, 1.0) if normed else None
    for got, want in zip(run(qkv, dim, interleaved, norms), expected(qkv, dim, interleaved, norms)):
        assert error(got, want) < TOLERANCE[torch.bfloat16]


def test_float16() -> None:
    qkv = random(TOKENS, HEADS + 2 * KV_HEADS, 128, dtype=torch.float16)
    for got, want in zip(run(qkv, 128, False, None), expected(qkv, 128, False, None)):
        assert error(got, want) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("head_dim", [80, 128])
def test_fp8_cache(head_dim: int) -> None:
    """Values are divided by their head's scale, rounded to nearest even and saturated: the bits are torch's."""
    qkv = guarded(random(TOKENS, HEADS + 2 * KV_HEADS, head_dim) * 100)
    scales = {"k_scale": guarded(torch.tensor([0.25, 4.0])), "v_scale": guarded(torch.tensor([2.0, 0.125]))}
    _, k, v = run(qkv, 0, False, None, torch.float8_e4m3fn, **scales)
    _, want_k, want_v = expected(qkv, 0, False, None)
    for got, want, scale in ((k, want_k, scales["k_scale"]), (v, want_v, scales["v_scale"])):
        rounded = (want / scale[:, None]).clamp(-448, 448).float().to(torch.float8_e4m3fn)
        assert torch.equal(got, rounded.double())


def test_every_count_of_heads_in_every_order_of_threads() -> None:
    """A block takes 8 heads of 128 of one token, a warp two of them."""
    for heads in range(1, 2 * 8):
        values, results = random(2, heads + 2, 128), []
        for seed in (0, 1, 2, 7):
            k, v, q = nan(1, 1, 16, 128), nan(1, 1, 16, 128), nan(2, heads, 128)
            with emulated(seed):
                norm_rotate_write(values, q, k, v, integers([9, 4], torch.int64), integers([3, 60]), RotaryTable(table(128), 128))
            results.append(torch.cat((q, k[0, 0, [9, 4], None], v[0, 0, [9, 4], None]), 1))
        q, k, v = values.double().split((heads, 1, 1), 1)
        turned = reference.rotate(torch.cat((q, k), 1), torch.tensor([3, 60]), table(128), 128, False)
        assert error(results[0], torch.cat((turned, v), 1)) < TOLERANCE[torch.bfloat16]
        assert all(torch.equal(results[0], other) for other in results)


def test_q_may_stay_where_it_is() -> None:
    qkv = random(TOKENS, HEADS + 2 * KV_HEADS, 128)
    want = expected(qkv, 128, False, None)[0]
    k, v = nan(BLOCKS, KV_HEADS, BLOCK, 128), nan(BLOCKS, KV_HEADS, BLOCK, 128)
    q = qkv[:, :HEADS]
    with emulated(seed=1):
        norm_rotate_write(qkv, q, k, v, integers(SLOTS, torch.int64), integers(POSITIONS), RotaryTable(table(128), 128))
    assert error(q, want) < TOLERANCE[torch.bfloat16]


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match="head size 72"):
        run(random(TOKENS, HEADS + 2 * KV_HEADS, 72), 72, False, None)
    with pytest.raises(UnsupportedShape, match="qkv has 9 heads"):
        run(random(TOKENS, 9, 128), 128, False, None)
    with pytest.raises(UnsupportedShape, match="rotary dimension 130"):
        run(random(TOKENS, HEADS + 2 * KV_HEADS, 128), 130, False, None)
