"""Poisoned rows, impossible wishes, tiny vocabularies, rows that change hands, and what a step may cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_workers.sampler import Sampler
from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref

NAN, INF = float("nan"), float("inf")


def sample_one(logits: list[float], **wishes: object) -> int:
    setup = RowSetup(0, 1, 3, **wishes)
    sampled = ref.sampler_for([setup], len(logits)).sample(torch.tensor([logits]), np.array([0]), np.array([1]))
    assert sampled.tokens.dtype == np.int32 and sampled.nan.dtype == np.bool_ and not sampled.nan[0]
    return int(sampled.tokens[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "wishes",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5}, {"logprobs": 2}, {"frequency_penalty": 1.0}],
    ids=str,
)
def test_poisoned_rows_are_flagged_and_harm_nobody(dtype: torch.dtype, wishes: dict[str, object]) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    setups = [RowSetup(row, 1, row, history=ref.packed([1, 2]), **wishes) for row in range(6)]
    clean = ref.sampler_for(setups, 50).sample(logits.clone(), np.arange(6), np.full(6, 2))
    logits[1, 7], logits[2, 9], logits[4] = NAN, INF, -INF
    sampled = ref.sampler_for(setups, 50).sample(logits, np.arange(6), np.full(6, 2))
    assert sampled.nan.tolist() == [False, True, True, False, True, False]
    assert (sampled.tokens[sampled.nan] == 0).all()
    assert (sampled.tokens == clean.tokens)[~sampled.nan].all()
    if "logprobs" in wishes:
        assert sampled.logprobs is not None and sampled.logprobs.at.tolist() == [0, 3, 5]
        assert np.isfinite(sampled.logprobs.top_logprobs).all()


def test_every_row_poisoned() -> None:
    setups = [RowSetup(row, 1, row, temperature=1.0, top_p=0.5, logprobs=1, bad_words=[[1, 2]]) for row in range(2)]
    sampled = ref.sampler_for(setups, 9).sample(torch.full((2, 9), NAN), np.arange(2), np.full(2, 3))
    assert sampled.nan.all() and sampled.logprobs is not None and len(sampled.logprobs.at) == 0


def test_a_few_impossible_tokens_are_not_poison() -> None:
    """Models with a padded vocabulary set the padding to -inf."""
    logits = [-INF, 1.0, -INF, 1.5, -INF]
    assert sample_one(logits) == 3
    for wishes in ({}, {"top_k": 3}, {"top_p": 0.99}, {"top_k": 4, "top_p": 0.99, "min_p": 0.01}):
        assert sample_one(logits, temperature=1.0, **wishes) in (1, 3)


def test_equal_logits_give_the_lowest_id() -> None:
    assert sample_one([0.0, 2.0, 2.0, 1.0, 2.0]) == 1
    assert sample_one([0.0, 2.0, 2.0, 1.0, 2.0], logit_bias={1: -1.0}) == 2
    assert sample_one([-0.0, 0.0, -1.0]) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_allowed(temperature: float) -> None:
    logits = [0.0, 1.0, 5.0, 3.0]
    everything = [[0], [1], [2], [3]]
    assert sample_one(logits, temperature=temperature, bad_words=everything) == 2
    assert sample_one(logits, temperature=temperature, bad_words=everything, allowed=ref.packed([0, 3])) == 3
    assert sample_one(logits, temperature=temperature, allowed=ref.packed([1]), stop_ids=[1], min_position=5) == 1
    assert sample_one(logits, temperature=temperature, allowed=ref.packed([77, -1])) == 2


def test_ids_outside_the_vocabulary_are_no_danger() -> None:
    strange = [-1, 4, 2**31 - 1]
    wishes = {
        "logit_bias": {4: 5.0, -1: 3.0}, "bad_words": [[4], [1, 99], [99, 2], [-1]], "stop_ids": strange, "min_position": 9,
        "history": ref.packed([*strange, 1]), "repetition_penalty": 1.1, "frequency_penalty": 0.1,
    }  # fmt: skip
    assert sample_one([0.0, 1.0, 5.0, 3.0], **wishes) == 2


@pytest.mark.parametrize(
    "wishes", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"allowed": ref.packed([2])}, {"temperature": 0.01}], ids=str
)
def test_wishes_that_leave_one_token(wishes: dict[str, object]) -> None:
    for seed in range(50):
        setup = RowSetup(0, 1, seed, **{"temperature": 2.0} | wishes)
        logits = torch.tensor([[0.0, 1.0, 4.0, 3.0, -2.0, 1.0, 3.5]])
        assert ref.sampler_for([setup], 7).sample(logits, np.array([0]), np.array([1])).tokens[0] == 2


@pytest.mark.parametrize("top_k", [7, 8, 10**9, -1, 2**62])
def test_a_top_k_of_the_whole_vocabulary_filters_nothing(top_k: int) -> None:
    setups = [RowSetup(row, 1, row, temperature=2.0) for row in range(200)]
    filtered = [RowSetup(row, 1, row, temperature=2.0, top_k=top_k) for row in range(200)]
    logits = torch.randn(1, 7).repeat(200, 1)
    tokens, same = (ref.sampler_for(each, 7).sample(logits.clone(), np.arange(200), np.arange(200)).tokens for each in (setups, filtered))
    assert tokens.tolist() == same.tolist() and len(set(tokens.tolist())) > 3


def test_huge_logits_and_low_temperatures_stay_finite() -> None:
    assert sample_one([3e38, -3e38, 1e38], temperature=0.01) == 0
    assert sample_one([3e38, -3e38, 1e38], temperature=2.0, top_p=0.9, top_k=2) == 0


def test_vocabularies_of_one_and_two() -> None:
    assert sample_one([0.3], temperature=1.0, logprobs=1) == 0
    assert sample_one([0.0, 9.0], temperature=0.1, top_k=1) == 1
    setups = [RowSetup(row, 1, row, temperature=1.0) for row in range(100)]
    tokens = ref.sampler_for(setups, 2).sample(torch.zeros(100, 2), np.arange(100), np.arange(100)).tokens
    assert 30 < tokens.sum() < 70


def test_no_rows() -> None:
    sampled = Sampler(4, 10, 5, ref.CPU).sample(torch.zeros(0, 10), np.zeros(0, np.int32), np.zeros(0, np.int64))
    assert len(sampled.tokens) == len(sampled.nan) == 0 and sampled.logprobs is None


def test_more_logprobs_than_tokens_or_places() -> None:
    for vocab, places in ((3, 5), (30, 2)):
        sampler = ref.sampler_for([RowSetup(0, 1, 0, logprobs=50)], vocab, max_logprobs=places)
        columns = sampler.sample(torch.randn(1, vocab), np.array([0]), np.array([1])).logprobs
        assert columns is not None and columns.top_ids.shape == (1, places) and (columns.top_ids >= 0).sum() == min(vocab, places)


def test_a_row_set_up_again_keeps_nothing() -> None:
    sampler = Sampler(2, 8, 4, ref.CPU)
    logits = torch.tensor([[0.0, 1.0, 5.0, 4.0, 3.0, 0.0, 0.0, 0.0]])
    everything = RowSetup(
        1, 1, 0, temperature=1.0, top_k=1, repetition_penalty=9.0, min_position=99, stop_ids=[2], logprobs=3, prompt_logprobs=2,
        logit_bias={2: -50.0}, bad_words=[[3], [2, 4]], allowed=ref.packed([0, 1]), history=ref.packed([2]),
    )  # fmt: skip
    sampler.setup([everything])
    first = sampler.sample(logits.clone(), np.array([1]), np.array([1]))
    assert first.tokens[0] == 1 and first.logprobs is not None
    assert sampler.history(1).tolist() == [2, 1]
    sampler.setup([RowSetup(1, 1, 0)])
    second = sampler.sample(logits.clone(), np.array([1]), np.array([1]))
    assert second.tokens[0] == 2 and second.logprobs is None
    assert sampler.history(1).tolist() == [] and sampler.prompt_logprobs_width(1) == -1


def test_plain_rows_are_left_alone_by_the_others_features() -> None:
    """A greedy batch is not copied or changed; in a mixed one, plain rows still get their argmax."""
    logits = torch.randn(3, 40)
    before = logits.clone()
    sampler = ref.sampler_for([RowSetup(0, 1, 0), RowSetup(1, 1, 0, logit_bias={3: 50.0}), RowSetup(2, 1, 0)], 40)
    assert sampler.sample(logits[:1], np.array([0]), np.array([1])).tokens[0] == before[0].argmax()
    assert torch.equal(logits, before)
    tokens = sampler.sample(logits, np.arange(3), np.full(3, 1)).tokens
    assert tokens.tolist() == [int(before[0].argmax()), 3, int(before[2].argmax())]


def test_penalty_state_is_given_back() -> None:
    sampler = Sampler(64, 5000, 4, ref.CPU)
    rng = np.random.default_rng(0)
    for _ in range(3):
        history = ref.packed(rng.integers(0, 5000, 900))
        sampler.setup([RowSetup(row, 10, row, presence_penalty=0.5, history=history) for row in range(64)])
        sampler.sample(torch.randn(64, 5000), np.arange(64), np.full(64, 900))
        held = sampler._penalties._ids.numel()
        assert 64 * 800 <= held <= 64 * 4 * 900  # as wide as the histories, not as the vocabulary
        sampler.setup([RowSetup(row, 10, row) for row in range(64)])
        assert sampler._penalties._ids.numel() == 0


def test_long_outputs_over_a_tiny_vocabulary_count_right() -> None:
    """More output tokens than the vocabulary has ids, so that the pool stops growing while counts go on."""
    sampler = ref.sampler_for([RowSetup(0, 1, 1, temperature=1.0, frequency_penalty=0.01, history=ref.packed([4]))], 5)
    output: list[int] = []
    for step in range(150):
        output.append(int(sampler.sample(torch.zeros(1, 5), np.array([0]), np.array([step + 1])).tokens[0]))
    penalties, used = sampler._penalties, int(sampler._penalties._used[0])
    tally = dict(zip(penalties._ids[0, :used].tolist(), penalties._tally[0, :used].tolist()))
    assert len(tally) == used == 5
    assert {token: tally[token] // 2 for token in range(5)} == {token: output.count(token) for token in range(5)}
    assert tally[4] % 2 == 1 and tally[0] % 2 == 0
