"""The edges of the inverse CDF, where a random number almost never falls, and the sums it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gpu_workers.sampling.draw import Drawer, Wishes
from gpu_workers.sampling.exact import ExactWeights

INF = float("inf")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the sampler has it; threads of torch's own make small operations slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(logits: list[float], u: list[float], top_k: int = 0, top_p: float = 1.0) -> list[int]:
    """One row of logits under several random numbers."""
    n = len(u)
    k = np.full(n, top_k)
    wishes = Wishes.of(torch.device("cpu"), np.ones(n, np.float32), np.zeros(n, np.float32), k, np.full(n, top_p), np.array(u))
    return Drawer(len(logits)).draw(torch.tensor(logits).repeat(n, 1), k, wishes).tolist()


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("ahead", [0, 1, 127, 128, 300])
def test_a_token_owns_its_lower_edge_and_not_its_upper(ahead: int, top_k: int) -> None:
    """Four tokens of a quarter each, an impossible one between them and any number ahead of them and after them."""
    logits = [-INF] * ahead + [0.0, 0.0, -INF, 0.0, 0.0] + [-INF] * 200
    u = [0.0, 0.25 - 2**-52, 0.25, 0.5 - 2**-52, 0.5, 0.75, 1 - 2**-52]
    assert draw(logits, u, top_k) == [ahead + token for token in (0, 0, 1, 1, 3, 4, 4)]


@pytest.mark.parametrize("top_k", [1, 3, 49, 70])
def test_tokens_tied_with_the_kth_all_stay(top_k: int) -> None:
    tokens = draw([0.0] * 90, np.linspace(0, 0.999, 300).tolist(), top_k)
    assert set(tokens) == set(range(90))


def test_tokens_tied_where_top_p_cuts_all_stay() -> None:
    logits = [3.0, -5.0, *[1.0] * 80, -9.0]
    assert set(draw(logits, np.linspace(0, 0.999, 500).tolist(), top_p=0.5)) == {0, *range(2, 82)}


@pytest.mark.parametrize("vocab", [1, 2, 7, 128, 32_000, 262_208])
def test_sums_are_exact_in_any_order(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    light = torch.rand(vocab, generator=generator) ** 12
    weights = ExactWeights(vocab)(light)
    assert (weights - light.double()).abs().max() <= 2.0**-35
    total = math.fsum(weights.tolist())
    shuffled = weights[torch.randperm(vocab, generator=generator)]
    for added in (weights.sum(), weights.flip(0).sum(), shuffled.cumsum(-1)[-1], weights[::2].sum() + weights[1::2].sum()):
        assert added.item() == total
    assert ExactWeights(vocab)(torch.ones(vocab)).sum().item() == vocab
