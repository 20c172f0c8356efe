"""A mixed step as the device launches it: rows with one new token through paged_decode, chunks through paged_prefill, over the same caches
and into one result, with every option at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_cuda import paged_decode, paged_prefill, reference
from tests.cuda_on_cpu.comparing import TOLERANCE, error, integers, nan, random
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded
from tests.cuda_on_cpu.test_paged_prefill import KV_HEADS, Chunk, Step, make_step

GROUP, DIM, SPLIT = 4, 64, 128
WINDOW, SOFT_CAP = 90, 15.0


def attend(step: Step, chunks: list[Chunk], window: int, seed: int, **options: object) -> list[torch.Tensor]:
    """Per chunk; the order of the two launches is the device's."""
    q, out = step.q, nan(*step.q.shape)
    past, new, first = (np.array(column, np.int32) for column in ([p for p, _ in chunks], [n for _, n in chunks], step.first[:-1]))
    rows, single = np.arange(len(chunks), dtype=np.int32), new == 1
    blocks = paged_decode.head_blocks(KV_HEADS, GROUP)
    split = paged_decode.plan_decode((past + new)[single], rows[single], first[single], blocks, 24, window, SPLIT)
    whole = paged_prefill.plan_prefill(new[~single], past[~single], first[~single], rows[~single], GROUP, window)
    scratch = nan(len(split.work), KV_HEADS * GROUP, DIM, dtype=torch.float32), nan(len(split.work), KV_HEADS * GROUP, dtype=torch.float32)
    scale = DIM**-0.5
    with emulated(seed):
        paged_decode.decode_attention(
            q, step.k, step.v, step.tables, integers(split.work), integers(split.merges), *scratch, out, scale, SOFT_CAP, **options  # type: ignore[arg-type]
        )  # fmt: skip
        paged_prefill.prefill_attention(
            q, step.k, step.v, step.tables, integers(whole.work), integers(whole.chunks), out, scale, window, SOFT_CAP, **options  # type: ignore[arg-type]
        )  # fmt: skip
    assert all(out[end].isnan().all() for end in (first + new).tolist())
    return [out[begin : begin + count] for begin, (_, count) in zip(step.first, chunks)]


CHUNKS = [(299, 1), (0, 37), (16, 1), (130, 20), (0, 1), (88, 1)]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16 cache", "fp8 cache"])
def test_all_options_at_once(fp8: bool) -> None:
    dtype = torch.float8_e4m3fn if fp8 else None
    step = make_step(CHUNKS, GROUP, DIM, window=WINDOW, cache_dtype=dtype)
    sinks = guarded(random(KV_HEADS * GROUP) * 2)
    scales = {name: guarded(torch.tensor([0.5, 2.0])) for name in ("k_scale", "v_scale")} if fp8 else {}
    got = attend(step, CHUNKS, WINDOW, 3, sinks=sinks, **scales)
    for at, (begin, (_, new)) in enumerate(zip(step.first, CHUNKS)):
        both = (each[at].float() * (torch.tensor([0.5, 2.0])[:, None] if fp8 else 1.0) for each in (step.keys, step.values))
        wanted = reference.prefill_attention(step.q[begin : begin + new], *both, DIM**-0.5, WINDOW, SOFT_CAP, sinks)
        assert error(got[at], wanted) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("window", [0, WINDOW])
def test_same_bits_alone_and_in_any_step(window: int) -> None:
    """With a fixed split, what a request gets does not depend on what else is in the step."""
    crowd = attend(make_step(CHUNKS, GROUP, DIM, window=window), CHUNKS, window, 1)
    for at, chunk in enumerate(CHUNKS):
        alone = make_step([chunk], GROUP, DIM, window=window, requests=[at], seed=at)
        assert torch.equal(attend(alone, [chunk], window, 2)[0], crowd[at])
    others = [CHUNKS[at] for at in (3, 0, 4)]
    some = attend(make_step(others, GROUP, DIM, window=window, requests=[3, 0, 4], seed=9), others, window, 7)
    assert all(torch.equal(got, crowd[at]) for got, at in zip(some, (3, 0, 4)))
