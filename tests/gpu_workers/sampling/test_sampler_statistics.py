"""Do tokens come as often as they should? Chi-square over positions; seeds are fixed, so a failure is a bug and not bad luck."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref

DRAWS = 20_000
LOGITS = [1.0, -0.5, 2.0, 0.0, 1.5, -3.0, 0.5]
# Upper 1e-5 points of chi-square for 0..6 degrees of freedom.
LIMIT = [0.0, 19.6, 23.1, 25.9, 28.5, 30.9, 33.2]


def frequencies(logits: torch.Tensor, setup: RowSetup, first: int = 0) -> np.ndarray:
    """Counts int64[vocab] over DRAWS positions of one request, drawn as that many rows with one seed."""
    setups = [setup.__class__(**{name: getattr(setup, name) for name in setup.__struct_fields__} | {"row": row}) for row in range(DRAWS)]
    sampler = ref.sampler_for(setups, len(logits))
    sampled = sampler.sample(logits.repeat(DRAWS, 1), np.arange(DRAWS), np.arange(first, first + DRAWS))
    return np.bincount(sampled.tokens, minlength=len(logits))


@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.5, "min_p": 0.2},
        {"temperature": 1.2, "top_k": 5, "top_p": 0.85, "min_p": 0.05},
        {"temperature": 1.0, "logit_bias": {5: 4.0}, "allowed": ref.packed([1, 3, 5, 6])},
        {"temperature": 1.0, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "history": ref.packed([2, 4, 4])},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, -1])
def test_frequencies(wishes: dict[str, Any], seed: int) -> None:
    setup = RowSetup(0, 1, seed, **wishes)
    counts = frequencies(torch.tensor(LOGITS), setup)
    expected = DRAWS * np.array(ref.probabilities(ref.changed(LOGITS, setup, 9), setup)[0])
    assert not counts[expected == 0].any()
    kept = expected > 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < LIMIT[kept.sum() - 1]


def test_equal_tokens_of_a_larger_vocabulary_come_equally_often() -> None:
    """Across block edges of the inverse CDF, where an off-by-one would favour a token."""
    vocab = 300
    counts = frequencies(torch.zeros(vocab), RowSetup(0, 1, 5, temperature=1.0))
    expected = DRAWS / vocab
    assert ((counts - expected) ** 2 / expected).sum() < 415  # 299 degrees of freedom, p = 1e-5
    thirds = counts.reshape(3, -1).sum(-1)
    assert np.abs(thirds - DRAWS / 3).max() < 5 * (DRAWS * 2 / 9) ** 0.5
