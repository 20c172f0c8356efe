"""The sampler against the plain one of reference.py: every feature, alone and in any mixture, in one batch."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref

HISTORY = ref.packed([3, 5, 3, 9, 1, 3])
ALONE = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "cold": {"temperature": 0.01},
    "top_k": {"temperature": 1.0, "top_k": 3},
    "top_k_large": {"temperature": 2.0, "top_k": 70},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "top_p_wide": {"temperature": 2.0, "top_p": 0.999},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "filters": {"temperature": 1.5, "min_p": 0.01, "top_k": 20, "top_p": 0.9},
    "repetition": {"repetition_penalty": 1.5, "history": HISTORY},
    "encouraged": {"repetition_penalty": 0.5, "history": HISTORY},
    "presence": {"presence_penalty": 1.5, "history": HISTORY},
    "frequency": {"frequency_penalty": 1.25, "history": HISTORY},
    "bias": {"logit_bias": {4: 6.0, 7: -3.0}},
    "bad_words": {"bad_words": [[3, 2], [1, 3, 8], [7], [9, 9, 9, 4]], "history": HISTORY},
    "allowed": {"allowed": ref.packed([2, 4, 6])},
    "min_tokens": {"min_position": 7, "stop_ids": [0, 2, 4]},
    "min_tokens_over": {"min_position": 6, "stop_ids": [0, 2, 4]},
}


def check(setups: list[RowSetup], logits: torch.Tensor, positions: np.ndarray) -> int:
    """How many of the entries were unclear."""
    before = logits.float().tolist()
    sampled = ref.sampler_for(setups, logits.shape[1]).sample(logits, ref.rows_of(setups), positions)
    assert not sampled.nan.any()
    unclear = 0
    for entry, setup in enumerate(setups):
        wanted, near = ref.choose(before[entry], setup, int(positions[entry]))
        unclear += near
        assert near or sampled.tokens[entry] == wanted, (entry, setup)
    return unclear


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feature_alone(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    setups = [RowSetup(row, 3, seed=row, **ALONE[name]) for row in range(24)]
    logits = (torch.randn(24, 150, generator=generator) * 2).to(dtype)
    logits[:, :10] += 3  # the features' ids are likely ones, so that each feature matters
    assert check(setups, logits, np.full(24, 6)) <= 2


@pytest.mark.parametrize("vocab", [7, 60, 513])
def test_any_mixture(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    entries, unclear = 0, 0
    for _ in range(6):
        setups = [ref.random_setup(rng, row, vocab) for row in rng.permutation(30).tolist()]
        logits = torch.from_numpy(rng.normal(0, 3, (30, vocab)).astype(np.float32))
        if rng.random() < 0.3:
            logits = logits.bfloat16()
        positions = np.array([len(ref.tokens_of(setup)) for setup in setups])
        unclear += check(setups, logits, positions)
        entries += 30
    assert unclear < 0.05 * entries


def test_logprobs_are_those_of_the_raw_logits() -> None:
    rng = np.random.default_rng(1)
    vocab = 90
    setups = [ref.random_setup(rng, row, vocab) for row in range(40)]
    logits = torch.from_numpy(rng.normal(0, 3, (40, vocab)).astype(np.float32))
    logits[::3] = logits[::3].bfloat16().float()  # ties
    wanted = torch.log_softmax(logits.double(), -1).numpy()
    sampled = ref.sampler_for(setups, vocab, max_logprobs=9).sample(logits, ref.rows_of(setups), np.full(40, 50))
    columns = sampled.logprobs
    assert columns is not None and columns.top_ids.shape == columns.top_logprobs.shape == (len(columns.at), 9)
    assert columns.at.tolist() == [entry for entry, setup in enumerate(setups) if setup.logprobs >= 0] != []
    for place, entry in enumerate(columns.at.tolist()):
        row, token, count = wanted[entry], sampled.tokens[entry], setups[entry].logprobs
        assert columns.logprob[place] == pytest.approx(row[token], abs=2e-6)
        assert columns.rank[place] == 1 + (row > row[token]).sum()
        best = sorted(range(vocab), key=lambda token: (-row[token], token))[:count]
        assert columns.top_ids[place].tolist() == best + [-1] * (9 - count)
        assert columns.top_logprobs[place, :count] == pytest.approx(row[best], abs=2e-6)
        assert not columns.top_logprobs[place, count:].any()
        if token in best:
            assert columns.top_logprobs[place, best.index(token)] == columns.logprob[place]  # to the bit: clients compare them


def test_scores_are_the_changed_log_probabilities() -> None:
    rng = np.random.default_rng(5)
    vocab, width, number = 90, 9, 30
    setups = [ref.random_setup(rng, row, vocab) for row in range(number)]
    setups = [msgspec.structs.replace(each, scores=each.row % 3 > 0, logprobs=each.row % 8) for each in setups]
    logits = torch.from_numpy(rng.normal(0, 3, (number, vocab)).astype(np.float32))
    positions = np.array([len(ref.tokens_of(setup)) for setup in setups])
    masked = np.flatnonzero(rng.random(number) < 0.4)
    allowed = rng.random((len(masked), 96)) < 0.5
    allowed[:, vocab:] = False
    masks = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    sampler = ref.sampler_for(setups, vocab, width)
    raw = torch.log_softmax(logits.double(), -1).tolist()
    sampled = sampler.sample(logits.clone(), ref.rows_of(setups), positions, masked, masks)
    others = ref.sampler_for([msgspec.structs.replace(each, scores=False) for each in setups], vocab, width)
    plain = others.sample(logits.clone(), ref.rows_of(setups), positions, masked, masks)
    assert sampled.logprobs is not None and plain.logprobs is not None and len(sampled.logprobs.at) == number
    for entry, setup in enumerate(setups):
        got = [column[entry] for column in (sampled.logprobs.top_ids, sampled.logprobs.top_logprobs)]
        if not setup.scores:
            assert sampled.tokens[entry] == plain.tokens[entry]
            assert got[0].tolist() == plain.logprobs.top_ids[entry].tolist()
            continue
        values = ref.changed(raw[entry], setup, int(positions[entry]))
        if entry in masked:
            mask = allowed[masked.tolist().index(entry)]
            values = [value if mask[token] else -math.inf for token, value in enumerate(values)]
        best = sorted((token for token in range(vocab) if values[token] > -math.inf), key=lambda token: -values[token])[: setup.logprobs]
        assert got[0].tolist() == best + [-1] * (width - len(best))
        assert got[1][: len(best)] == pytest.approx([values[token] for token in best], abs=1e-5)
        assert not got[1][len(best) :].any()


def test_prompt_logprobs_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(25, 100, generator=torch.Generator().manual_seed(3)).bfloat16()
    before = logits.clone()
    targets = np.arange(25, dtype=np.int32) * 3
    sampler = ref.sampler_for([RowSetup(0, 1, 0, prompt_logprobs=4)], 100, max_logprobs=6)
    assert sampler.prompt_logprobs_width(0) == 4
    whole = sampler.prompt_logprobs(logits, targets, 4)
    wanted = torch.log_softmax(before.double(), -1).numpy()
    assert whole.at.tolist() == list(range(25))
    assert whole.logprob == pytest.approx(wanted[np.arange(25), targets], abs=2e-6)
    assert whole.rank.tolist() == [1 + int((row > row[target]).sum()) for row, target in zip(wanted, targets)]
    assert (whole.top_ids[:, 4:] == -1).all() and (np.diff(whole.top_logprobs[:, :4]) <= 0).all()
    assert torch.equal(logits, before)
    monkeypatch.setattr("gpu_workers.sampling.logprobs.CHUNK_ELEMENTS", 300)
    for name, column in vars(sampler.prompt_logprobs(logits, targets, 4)).items():
        assert np.array_equal(column, getattr(whole, name)), name


def test_prompt_logprobs_of_the_target_alone_and_of_none() -> None:
    sampler = ref.sampler_for([RowSetup(0, 1, 0)], 20, max_logprobs=3)
    assert sampler.prompt_logprobs_width(0) == -1
    logits = torch.randn(4, 20)
    columns = sampler.prompt_logprobs(logits, np.array([0, 19, 20, -1]), 0)
    assert (columns.top_ids == -1).all()
    assert np.isfinite(columns.logprob[:2]).all() and (columns.logprob[2:] == -np.inf).all()
    assert len(sampler.prompt_logprobs(logits[:0], np.zeros(0, np.int32), 2).rank) == 0
