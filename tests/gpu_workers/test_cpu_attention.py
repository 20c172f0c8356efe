"""The compiled attention kernel against torch's way, over mixes of rows, windows, norms, partial rotation and threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gpu_workers.attention import HeadNorms
from gpu_workers.attention.cpu_attention import AttentionKernel
from gpu_workers.attention.cpu_paged import CPUPagedAttention
from gpu_workers.batch import StepInputs
from gpu_workers.device.base import AttentionShape
from gpu_workers.device.cpu import CPUDevice
from gpu_workers.kv_cache import KVCache
from gpu_workers.layers.rotary import Rotary
from gpu_workers.models.spec import DecoderSpec, RotarySpec
from ipc import config as ipc_config
from kernels_cpu import features
from tests.gpu_workers import software_tiles

LENGTH = 3000
# (new tokens, tokens before) of each row.
STEPS = {
    "one row decodes": [(1, 2600)],
    "rows decode": [(1, 0), (1, 15), (1, 16), (1, 300), (1, 33)],
    "prefill": [(150, 0), (17, 0), (2, 0)],
    "chunks": [(40, 129), (3, 16), (100, 7)],
    "everything": [(1, 700), (33, 5), (1, 3), (130, 0), (1, 1200), (2, 1)],
}


class Case:
    """One shape with its kernel, a cache of noise, and torch's backend beside the compiled one."""

    def __init__(self, dim: int, group: int, kv_heads: int, block_size: int, dtype: torch.dtype, turned: int, window: int) -> None:
        self.device = CPUDevice(ipc_config.load({"cpu_threads": 2}, environ={}))
        heads = group * kv_heads
        rotary = RotarySpec(dim=turned, theta=10_000.0)
        self.spec = DecoderSpec(
            vocab_size=10, hidden_size=heads * dim, intermediate_size=1, num_layers=2, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim,
            norm_eps=1e-6, rotary=rotary, windows=(0, window),
        )  # fmt: skip
        self.rotary = Rotary(rotary, LENGTH, dtype, torch.device("cpu"))
        self.kernel = AttentionKernel(AttentionShape(dim, group, kv_heads, block_size, dtype), 2)
        self.dtype, self.block_size = dtype, block_size

    def attended(self, compiled: bool, step: StepInputs, layer: int, normed: bool) -> tuple[torch.Tensor, KVCache]:
        spec = self.spec
        torch.manual_seed(1)
        blocks = int(step.block_tables.max()) + 1
        cache = KVCache(self.device, 2, blocks, spec.num_kv_heads, self.block_size, spec.head_dim, self.dtype)
        for tensor in (*cache.k, *cache.v):
            tensor.normal_()
        assert self.kernel.wait(250)
        self.kernel.ready = compiled
        backend = CPUPagedAttention(spec, cache, self.kernel)
        q, k = torch.rand(2, spec.head_dim).to(self.dtype)
        by_head = torch.cat((q.expand(spec.num_heads, -1), k.expand(spec.num_kv_heads, -1)))
        qkv = torch.randn(len(step.positions), spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim).to(self.dtype)
        backend.plan(step)
        backend.begin(self.rotary, torch.from_numpy(step.positions))
        out = backend.run(qkv, HeadNorms(q, k, by_head, 1e-6) if normed else None, layer)
        self.kernel.ready = True
        return out, cache


def made_step(rows: list[tuple[int, int]], block_size: int) -> StepInputs:
    num_new, start = np.array(rows).T
    lengths = num_new + start
    per_row = -(-int(lengths.max()) // block_size)
    tables = np.random.default_rng(0).permutation(len(rows) * per_row).astype(np.int32).reshape(len(rows), per_row)
    row_of_token = np.repeat(np.arange(len(rows)), num_new)
    query_starts = np.concatenate(([0], num_new.cumsum()))
    positions = np.arange(len(row_of_token)) + (start - query_starts[:-1])[row_of_token]
    block, offset = np.divmod(positions, block_size)
    return StepInputs(
        rows=np.arange(len(rows)), num_new=num_new, start=start, seq_lens=lengths, flags=np.zeros(len(rows), np.int32),
        query_starts=query_starts, row_of_token=row_of_token, token_ids=positions, given=np.zeros(0, np.int64), positions=positions,
        slots=tables[row_of_token, block].astype(np.int64) * block_size + offset, sample_at=np.arange(len(rows)), block_tables=tables,
        masked_at=np.zeros(0, np.int64), masks=np.zeros((0, 0), np.int32),
    )  # fmt: skip


SHAPES = {
    "grouped bfloat16": {"dim": 64, "group": 7, "kv_heads": 2, "block_size": 16, "dtype": torch.bfloat16, "turned": 64, "window": 50},
    "odd float32": {"dim": 20, "group": 1, "kv_heads": 3, "block_size": 5, "dtype": torch.float32, "turned": 12, "window": 7},
    # On tiles, by AMX (in software where the CPU has none) or by dots: one tile, more tiles of sums than registers, more heads than a block
    # has rows, one head.
    "tiles": {"dim": 64, "group": 7, "kv_heads": 2, "block_size": 16, "dtype": torch.bfloat16, "turned": 64, "window": 50},
    "wide tiles": {"dim": 96, "group": 20, "kv_heads": 1, "block_size": 32, "dtype": torch.bfloat16, "turned": 48, "window": 7},
    "single tiles": {"dim": 64, "group": 1, "kv_heads": 3, "block_size": 16, "dtype": torch.bfloat16, "turned": 64, "window": 50},
}
SHAPES |= {name.replace("tiles", "dots"): shape for name, shape in SHAPES.items() if "tiles" in name}
# So few query heads beside so many dimensions that keys are not turned.
SHAPES["few dots"] = {"dim": 128, "group": 3, "kv_heads": 2, "block_size": 32, "dtype": torch.bfloat16, "turned": 128, "window": 300}


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        if "tiles" in request.param:
            if not features.amx():
                if SHAPES[request.param]["group"] == 1 and not features.dots():
                    pytest.skip("this CPU has no dot products of bfloat16")
                software_tiles.use(patch, AttentionKernel)
        else:
            patch.setattr(features, "amx", lambda: False)
            if "dots" not in request.param:
                patch.setattr(features, "dots", lambda: False)
            elif not features.dots():
                pytest.skip("this CPU has no dot products of bfloat16")
        made = Case(**SHAPES[request.param])
        assert made.kernel.wait(250)
    torch.set_num_threads(2)
    yield made
    torch.set_num_threads(before)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("layer", [0, 1], ids=["all", "window"])
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS)
def test_same_as_torch(case: Case, rows: list[tuple[int, int]], layer: int, normed: bool) -> None:
    step = made_step(rows, case.block_size)
    (ours, stored), (wanted, reference) = (case.attended(compiled, step, layer, normed) for compiled in (True, False))
    close = {"rtol": 0.03, "atol": 0.03} if case.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours, wanted, **close)
    torch.testing.assert_close(stored.k[layer], reference.k[layer], **close)
    assert torch.equal(stored.v[layer], reference.v[layer])


def test_a_long_row_is_cut_for_the_threads(case: Case) -> None:
    """Of the one row's keys each thread gets some; whoever works on them, the result is the same, bit for bit."""
    step = made_step(STEPS["one row decodes"], case.block_size)
    split, first, end = case.kernel._parts(step.seq_lens, 2)
    assert split > 1 and first[0] == 0 and end[-1] == 2601 and (first[1:] == end[:-1]).all()
    both, _ = case.attended(True, step, 0, False)
    torch.set_num_threads(1)
    alone, _ = case.attended(True, step, 0, False)
    torch.set_num_threads(2)
    assert torch.equal(both, alone)
