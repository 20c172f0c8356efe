"""Launches through CuPy on a real GPU: streams, graphs, bits. That each kernel is right is bench/gpu's to check, in every variant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kernels_cuda import launch, norms, paged_decode, reference
from kernels_cuda.launch import on_stream

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def stream() -> Iterator[torch.cuda.Stream]:
    """A stream of its own, for torch and for the launchers."""
    made = torch.cuda.Stream()
    with torch.cuda.stream(made), on_stream(made.cuda_stream):
        yield made
    torch.cuda.synchronize()


def normed(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    norms.add_rms_norm(x, None, weight, out, 1e-5)


def test_a_launch_and_its_place_on_the_stream() -> None:
    """torch's work before and after the launch is on the same stream: no synchronization is needed between them."""
    weight = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
    for seed in range(20):
        x = torch.randn(256, 4096, device="cuda", dtype=torch.bfloat16, generator=torch.Generator("cuda").manual_seed(seed))
        out = torch.full_like(x, float("nan"))
        normed(x, weight, out)
        want = reference.rms_norm(x, weight, 1e-5)
        assert float((out.double() - want).norm() / want.norm()) < 4e-3


def test_a_captured_graph_replays_with_new_inputs(stream: torch.cuda.Stream) -> None:
    x, weight = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((8, 4096), (4096,)))
    out = torch.empty_like(x)
    normed(x, weight, out)  # loads the kernel, which a capture may not do
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        normed(x, weight, out)
    for _ in range(3):
        x.normal_()
        out.fill_(float("nan"))
        graph.replay()
        want = reference.rms_norm(x, weight, 1e-5)
        assert float((out.double() - want).norm() / want.norm()) < 4e-3


def attend(lengths: list[int], k: torch.Tensor, v: torch.Tensor, tables: torch.Tensor, q: torch.Tensor, fixed_split: int) -> torch.Tensor:
    count, heads, dim = q.shape
    each = np.arange(count, dtype=np.int32)
    plan = paged_decode.plan_decode(np.array(lengths, np.int32), each, each, paged_decode.head_blocks(8, 4), 264, 0, fixed_split)
    out, items = torch.full_like(q, float("nan")), len(plan.work)
    work, merges = (torch.as_tensor(each).cuda() for each in (plan.work, plan.merges))
    scratch = torch.empty(items, heads, dim, device="cuda"), torch.empty(items, heads, device="cuda")
    paged_decode.decode_attention(q, k, v, tables, work, merges, *scratch, out, dim**-0.5)
    return out


def test_a_fixed_split_gives_the_same_bits_alone_and_in_a_crowd() -> None:
    lengths = [5000, 1, 777, 16, 2049, 300]
    blocks = [-(-length // 16) for length in lengths]
    k, v = (torch.randn(sum(blocks), 8, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32, device="cuda")
    pages = torch.randperm(sum(blocks), device="cuda").int()
    for row, (count, end) in enumerate(zip(blocks, np.cumsum(blocks).tolist())):
        tables[row, :count] = pages[end - count : end]
    q = torch.randn(len(lengths), 32, 128, device="cuda", dtype=torch.bfloat16)
    crowd = attend(lengths, k, v, tables, q, 512)
    assert torch.equal(crowd, attend(lengths, k, v, tables, q, 512))
    for row, length in enumerate(lengths):
        assert torch.equal(attend([length], k, v, tables[row : row + 1], q[row : row + 1], 512), crowd[row : row + 1])


def test_too_much_shared_memory_is_a_clear_error() -> None:
    from kernels_cuda.errors import KernelError
    from kernels_cuda.norms import SOURCE

    with pytest.raises(KernelError, match="bytes of shared memory per block, this GPU has"):
        launch.load(SOURCE.kernel("layer_norm", SOURCE.variants[0]), 1 << 20)
