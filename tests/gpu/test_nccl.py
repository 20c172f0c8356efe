"""NCCL itself, as a group of one rank: its communicator, its data types and its place on torch's stream, also in a graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gpu_workers import nccl
from gpu_workers.nccl import NCCLCollectives

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def ranks() -> Iterator[NCCLCollectives]:
    torch.cuda.init()
    group = nccl.join(0, 1, nccl.new_id())
    yield group
    group.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64])
def test_one_rank_keeps_what_it_has(ranks: NCCLCollectives, dtype: torch.dtype) -> None:
    x = torch.arange(12, device="cuda").view(3, 4).to(dtype)
    before = x.clone()
    columns = ranks.gather_columns(x)
    assert columns is not None and torch.equal(columns, before)
    assert torch.equal(ranks.all_reduce(x), before) and torch.equal(ranks.broadcast(x), before)


def test_a_sum_in_a_graph(ranks: NCCLCollectives) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros(4096, device="cuda", dtype=torch.bfloat16)
        ranks.all_reduce(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            x += 1
            ranks.all_reduce(x)
        for _ in range(3):
            graph.replay()
    torch.cuda.synchronize()
    assert bool((x == 3).all())
