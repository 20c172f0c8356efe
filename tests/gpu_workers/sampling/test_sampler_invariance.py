"""A row's results depend on nothing but the row: not on its batch, its place in it, the way a filter is computed, or a preemption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_workers.sampler import Sampled
from gpu_workers.sampling import draw
from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref


def batch(seed: int, count: int, vocab: int) -> tuple[list[RowSetup], torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    setups = [ref.random_setup(rng, row, vocab) for row in rng.permutation(count).tolist()]
    logits = torch.from_numpy(rng.normal(0, rng.choice([0.01, 1, 5]), (count, vocab)).astype(np.float32))
    logits[::2] = logits[::2].bfloat16().float()  # rows with many ties
    if rng.random() < 0.3:
        logits[int(rng.integers(count)), int(rng.integers(vocab))] = np.nan
    return setups, logits, np.array([len(ref.tokens_of(setup)) for setup in setups])


def results(sampled: Sampled) -> list[tuple[Any, ...]]:
    """For each entry all that was said of it, to the bit."""
    said: list[tuple[Any, ...]] = [(int(token), bool(nan)) for token, nan in zip(sampled.tokens, sampled.nan)]
    if sampled.logprobs is not None:
        for place, entry in enumerate(sampled.logprobs.at):
            said[entry] += tuple(column[place].tobytes() for name, column in vars(sampled.logprobs).items() if name != "at")
    return said


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), vocab=st.sampled_from([7, 129, 700]), data=st.data())
def test_permuted_and_split_batches(seed: int, vocab: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    setups, logits, positions = batch(seed, count, vocab)
    whole = results(ref.sampler_for(setups, vocab).sample(logits.clone(), ref.rows_of(setups), positions))
    order = np.array(data.draw(st.permutations(range(count))))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    sampler = ref.sampler_for(setups, vocab)
    for part in np.split(order, cuts):
        got = results(sampler.sample(logits[torch.from_numpy(part)], ref.rows_of(setups)[part], positions[part]))
        assert got == [whole[entry] for entry in part]


def test_a_large_vocabulary_alone_and_in_a_batch() -> None:
    """Large enough for several chunks and for torch to split its work among threads."""
    vocab, count = 33_333, 12
    kinds = [{"top_p": 0.9}, {}, {"top_k": 40, "top_p": 0.9}, {"top_k": 600}, {"min_p": 0.02}, {"top_p": 0.5, "logprobs": 3}]
    setups = [RowSetup(row, 1, row, temperature=1.0, **kinds[row % len(kinds)]) for row in range(count)]
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(1)) * 2
    positions = np.arange(count)
    sampler = ref.sampler_for(setups, vocab)
    whole = results(sampler.sample(logits.clone(), np.arange(count), positions))
    for entry in range(count):
        one = slice(entry, entry + 1)
        assert results(sampler.sample(logits[one].clone(), np.arange(count)[one], positions[one])) == [whole[entry]]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), vocab=st.sampled_from([7, 129, 700]))
def test_every_way_to_filter_gives_the_same_tokens(seed: int, vocab: int) -> None:
    """Small top-k without weighing everything, top-p by the largest few or by histogram: shortcuts, not other answers."""
    setups, logits, positions = batch(seed, 20, vocab)
    rows = ref.rows_of(setups)
    usual = ref.sampler_for(setups, vocab).sample(logits.clone(), rows, positions).tokens.tolist()
    for few, peek, buckets in (((), 1, 1024), ((64, 512), 1, 16), ((2,), 5, 1), ((), 10_000, 1024)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draw, "FEW", few)
            patch.setattr(draw, "PEEK", peek)
            patch.setattr(draw, "BUCKETS", buckets)
            assert ref.sampler_for(setups, vocab).sample(logits.clone(), rows, positions).tokens.tolist() == usual


def generate(setup: RowSetup, vocab: int, steps: int, preempt_every: int | None) -> list[int]:
    """Tokens of one request; at a preemption another request takes its row and it goes on in another, from its history."""
    sampler = ref.sampler_for([setup, RowSetup(4, 1, 1)], vocab)
    row, output = setup.row, []
    prompt = ref.tokens_of(setup)
    for step in range(steps):
        if preempt_every and step and step % preempt_every == 0:
            other, row = row, (row + 1) % 4
            history = ref.packed(prompt + output)
            sampler.setup([RowSetup(other, 1, 5, temperature=1.0, frequency_penalty=1.0, history=ref.packed([1]), bad_words=[[1, 2]])])
            columns = {name: getattr(setup, name) for name in setup.__struct_fields__} | {"row": row, "history": history}
            sampler.setup([RowSetup(**columns)])
        position = len(prompt) + step
        # The model: logits that depend on the history, so that one wrong token changes all that follow.
        generator = torch.Generator().manual_seed(position + 1000 * (output[-1] if output else 0))
        logits = torch.randn(2, vocab, generator=generator)
        output.append(int(sampler.sample(logits, np.array([row, 4]), np.array([position, step])).tokens[0]))
        assert sampler.history(row).tolist()[: len(prompt)] == prompt
    return output


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_preempted_request_goes_on_as_if_nothing_had_been(temperature: float, every: int) -> None:
    setup = RowSetup(
        0, 3, 11, temperature=temperature, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.4, min_position=12,
        stop_ids=[1, 2], bad_words=[[3, 4], [5, 6, 7], [8]], history=ref.packed([3, 5, 6]),
    )  # fmt: skip
    straight = generate(setup, 12, 40, None)
    assert len(set(straight)) > 5
    assert generate(setup, 12, 40, every) == straight
