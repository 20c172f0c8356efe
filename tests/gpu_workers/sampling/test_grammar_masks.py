"""Masks of rows under a grammar: nothing else may come, whatever else the row asks for; other rows and log-probabilities see nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpu_workers.sampler import Sampled
from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref

VOCAB = 70
ROWS = 40
RNG = np.random.default_rng(0)
INF = float("inf")


def words(allowed: np.ndarray) -> np.ndarray:
    """bool[k, vocab] as the plan has it."""
    padded = np.zeros((len(allowed), -(-VOCAB // 32) * 32), np.uint8)
    padded[:, :VOCAB] = allowed
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def sample(logits: torch.Tensor, setups: list[RowSetup], masked_at: np.ndarray | None, masks: np.ndarray | None) -> Sampled:
    rows = np.arange(len(setups))
    return ref.sampler_for(setups, VOCAB).sample(logits.clone(), rows, np.full(len(setups), 5), masked_at, masks)


WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 1.5, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.3, "min_p": 0.1},
    {"frequency_penalty": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "logit_bias": {1: 100.0, 2: -100.0}},
    {"bad_words": [[token] for token in range(VOCAB)]},
    {"min_position": 100, "stop_ids": list(range(VOCAB))},
    {"allowed": ref.packed([3, 4, 5])},
    {"logprobs": 3, "temperature": 1.0},
]


@pytest.mark.parametrize("wishes", WISHES, ids=[str(wish)[:40] for wish in WISHES])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_only_what_the_mask_allows(wishes: dict[str, Any], share: float) -> None:
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    setups = [RowSetup(row, 2, row, history=ref.packed([1, 2, 3]), **wishes) for row in range(ROWS)]
    masked_at = np.flatnonzero(RNG.random(ROWS) < 0.6)
    allowed = RNG.random((len(masked_at), VOCAB)) < share
    allowed[np.arange(len(masked_at)), RNG.integers(0, VOCAB, len(masked_at))] = True
    plain, masked = sample(logits, setups, None, None), sample(logits, setups, masked_at, words(allowed))
    assert allowed[np.arange(len(masked_at)), masked.tokens[masked_at]].all()
    others = np.setdiff1d(np.arange(ROWS), masked_at)
    assert np.array_equal(plain.tokens[others], masked.tokens[others]), "a mask changed another row"
    if "logprobs" in wishes:
        assert plain.logprobs is not None and masked.logprobs is not None
        assert np.array_equal(plain.logprobs.top_logprobs, masked.logprobs.top_logprobs), "log-probabilities are the model's own"
    if not wishes:
        best = np.where(allowed, logits[masked_at].numpy(), -np.inf).argmax(-1)
        assert np.array_equal(masked.tokens[masked_at], best)


def test_a_full_mask_changes_nothing() -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(2))
    for wishes in ({"temperature": 1.0, "top_p": 0.9}, {}, {"allowed": ref.packed([3, 9])}):
        setups = [RowSetup(row, 2, row, **wishes) for row in range(8)]
        full = words(np.ones((8, VOCAB), bool))
        assert np.array_equal(sample(logits, setups, None, None).tokens, sample(logits, setups, np.arange(8), full).tokens)


def test_where_wishes_and_mask_exclude_each_other_the_mask_wins() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[:, 40] = 5
    allowed = np.zeros((2, VOCAB), bool)
    allowed[:, [40, 41]] = True
    setups = [RowSetup(row, 2, row, allowed=ref.packed([3, 4]), temperature=float(row)) for row in range(2)]
    assert sample(logits, setups, np.arange(2), words(allowed)).tokens.tolist() == [40, 40]
    setups = [RowSetup(row, 2, row, allowed=ref.packed([3, 41])) for row in range(2)]
    assert sample(logits, setups, np.arange(2), words(allowed)).tokens.tolist() == [41, 41]


def test_tokens_that_the_model_excludes_and_rows_that_are_not_finite() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[0, 10:20] = -INF
    logits[1, 0] = float("nan")
    allowed = np.zeros((3, VOCAB), bool)
    allowed[0, [12, 15]], allowed[1, 3], allowed[2, 69] = True, True, True
    sampled = sample(logits, [RowSetup(row, 2, row) for row in range(3)], np.arange(3), words(allowed))
    assert sampled.tokens.tolist() == [12, 0, 69] and sampled.nan.tolist() == [False, True, False]
