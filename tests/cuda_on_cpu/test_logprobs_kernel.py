"""Log-probabilities by the kernel against float64 and against the CPU sampler's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_workers.sampling.logprobs import LogprobReporter
from kernels_cuda import logprobs
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded
from tests.cuda_on_cpu.sampler_rows import column

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def report(logits: torch.Tensor, at: list[int], tokens: list[int], widths: list[int], columns: int = 20) -> Columns:
    """(logprob, rank, top_ids, top_logprobs), whose former contents are NaN and -7."""
    count = len(at)
    floats = [guarded(torch.full(shape, torch.nan)) for shape in ((count,), (count, columns))]
    ints = [guarded(torch.full(shape, -7, dtype=torch.int32)) for shape in ((count,), (count, columns))]
    given = (column(each, torch.int32) for each in (at, tokens, widths))
    logprobs.report_logprobs(logits, *given, floats[0], ints[0], ints[1], floats[1])
    return floats[0].numpy(), ints[0].numpy(), ints[1].numpy(), floats[1].numpy()


def expected(row: torch.Tensor, token: int, width: int, columns: int) -> tuple[float, int, list[int], list[float]]:
    """By sorting, in float64."""
    values = row.double()
    each = (values - values.logsumexp(0)).tolist()
    order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:width]
    padding = columns - len(order)
    rank = 1 + int((row > row[token]).sum())
    return each[token], rank, order + [-1] * padding, [each[i] for i in order] + [0.0] * padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [7, 33, 511, 512, 513, 1025, 4099])
def test_logprobs(vocab: int, dtype: torch.dtype) -> None:
    """bfloat16 has ties everywhere: equal ones stand by ascending id, and the lowest ids are in the list."""
    rng = np.random.default_rng(vocab)
    logits = guarded(torch.from_numpy(3 * rng.standard_normal((4, vocab)).astype(np.float32)).to(dtype))
    logits[0, 3] = -torch.inf
    at, tokens, widths = [2, 0, 3, 0, 1], [1, 3, vocab - 1, 0, 2], [20, 5, 0, 1, -1]
    with emulated(seed=3):
        got = report(logits, at, tokens, widths)
    for i, (row, token, width) in enumerate(zip(at, tokens, widths)):
        logprob, rank, ids, values = expected(logits[row], token, max(width, 0), 20)
        assert got[0][i] == pytest.approx(logprob, abs=2e-6) and got[1][i] == rank
        assert got[2][i].tolist() == ids and got[3][i] == pytest.approx(values, abs=2e-6)
    cpu = LogprobReporter(vocab, 20).report(logits[at], np.array(tokens), np.maximum(widths, 0), np.arange(len(at)))
    assert (got[1] == cpu.rank).all() and (got[2] == cpu.top_ids).all()
    np.testing.assert_allclose(got[0], cpu.logprob, atol=2e-6)
    np.testing.assert_allclose(got[3], cpu.top_logprobs, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_all_tied(seed: int) -> None:
    """The list is filled by whoever comes first, and yet is the lowest ids in order; a zero's sign is no difference."""
    logits = torch.zeros(1, 3000)
    logits[0, ::3] = -0.0
    logits[0, 2500] = 1
    with emulated(seed):
        got = report(guarded(logits), [0], [2999], [20])
    assert got[2][0].tolist() == [2500, *range(19)] and got[1].tolist() == [2]
    assert got[3][0][1] == got[0][0]  # a token's float is the same in both


def test_what_has_no_logprob() -> None:
    logits = torch.zeros(4, 9)
    logits[1, 4], logits[2, 5], logits[3] = torch.nan, torch.inf, -torch.inf
    with emulated(seed=1):
        got = report(guarded(logits), [0, 0, 1, 2, 3, 4, -1], [9, -1, 0, 0, 0, 0, 0], [2] * 7, columns=3)
    assert got[0][:2].tolist() == [-np.inf] * 2 and np.isnan(got[0][2:]).all()
    assert got[1].tolist() == [9, 9, 0, 0, 0, 0, 0]
    assert got[2].tolist() == [[0, 1, -1]] * 2 + [[-1, -1, -1]] * 5 and (got[3][2:] == 0).all()


def test_an_entry_does_not_depend_on_the_batch_or_on_the_order_of_threads() -> None:
    logits = guarded(torch.randn(5, 4099, generator=torch.Generator().manual_seed(0)))
    with emulated():
        whole = report(logits, list(range(5)), [7] * 5, [20] * 5)
    for seed in (1, 2, 7):
        with emulated(seed):
            alone = report(guarded(logits[3:4]), [0], [7], [20])
        assert all((a[0] == b[3]).all() for a, b in zip(alone, whole))


def test_unsupported_shapes_are_named() -> None:
    with pytest.raises(UnsupportedShape, match="33 alternatives; at most 32"):
        report(torch.zeros(1, 40), [0], [0], [0], columns=33)
    with pytest.raises(UnsupportedShape, match="logits are float64"):
        report(torch.zeros(1, 40, dtype=torch.float64), [0], [0], [0])
