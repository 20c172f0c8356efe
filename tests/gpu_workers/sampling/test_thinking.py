"""The token that ends reasoning comes when the budget is used up, whatever else the row asks for, and not before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpu_workers.sampler import Sampler
from gpu_workers.sampling.thinking import Thoughts
from ipc.arena import RowSetup
from ipc.sampling_params import ThinkingLimit
from tests.gpu_workers.sampling import reference as ref

BEGIN, END, VOCAB = 1, 2, 40
PROMPT = [5, 6]


def play(sampler: Sampler, row: int, at: int, count: int) -> list[int]:
    """`count` tokens from position `at` on; the logits of a position are always the same."""
    tokens = []
    for position in range(at, at + count):
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(position))
        logits[0, [BEGIN, END]] = -30.0
        tokens.append(int(sampler.sample(logits, np.array([row]), np.array([position])).tokens[0]))
    return tokens


def setup(limit: ThinkingLimit | None, output: list[int], **wishes: Any) -> RowSetup:
    return RowSetup(0, len(PROMPT), 3, history=ref.packed(PROMPT + output), thinking=limit, **wishes)


WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"bad_words": [[END]], "logprobs": 2},
    {"allowed": ref.packed(range(5, 20))},
]


@pytest.mark.parametrize("wishes", WISHES, ids=str)
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_the_end_comes_in_time(wishes: dict[str, Any], budget: int) -> None:
    limit = ThinkingLimit(budget, BEGIN, END, opened=True)
    limited = play(ref.sampler_for([setup(limit, [], **wishes)], VOCAB), 0, 2, 12)
    free = play(ref.sampler_for([setup(None, [], **wishes)], VOCAB), 0, 2, 12)
    assert limited.index(END) == budget
    assert limited[:budget] == free[:budget], "nothing else changes"
    assert limited.count(END) == 1


@pytest.mark.parametrize("wishes", WISHES, ids=str)
def test_a_row_that_is_set_up_again_goes_on(wishes: dict[str, Any]) -> None:
    limit = ThinkingLimit(4, BEGIN, END, opened=True)
    whole = play(ref.sampler_for([setup(limit, [], **wishes)], VOCAB), 0, 2, 10)
    for cut in range(10):
        again = ref.sampler_for([setup(limit, whole[:cut], **wishes)], VOCAB)
        assert whole[:cut] + play(again, 0, 2 + cut, 10 - cut) == whole


def test_what_counts() -> None:
    def used(tokens: list[int], opened: bool) -> tuple[int, int | None]:
        thoughts = Thoughts(ThinkingLimit(3, BEGIN, END, opened), tokens)
        return thoughts.used, thoughts.forced

    assert used([9, 9, 9, 9], opened=False) == (0, None)
    assert used([BEGIN, 9, 9], opened=False) == (2, None)
    assert used([BEGIN, 9, 9, 9], opened=False) == (3, END)
    assert used([9, 9, 9], opened=True) == (3, END)
    assert used([9, 9, END, 9, 9], opened=True) == (2, None)
    # The budget is the whole output's: a later thought has what is left.
    assert used([9, 9, END, 9, BEGIN, 9], opened=True) == (3, END)
    assert used([9, 9, 9, END, BEGIN], opened=True) == (3, END)


def test_logprobs_of_named_tokens() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    wanted = torch.log_softmax(logits.double(), -1).numpy()
    setups = [
        RowSetup(0, 1, 3, logprobs=3, logprob_ids=ref.packed([7, 30, 8])),
        RowSetup(1, 1, 3, logprobs=3),
        RowSetup(2, 1, 3, logprobs=1, logprob_ids=ref.packed([0])),
    ]
    columns = ref.sampler_for(setups, VOCAB).sample(logits.clone(), np.arange(3), np.full(3, 1)).logprobs
    assert columns is not None
    assert columns.top_ids[0, :3].tolist() == [7, 30, 8] and columns.top_ids[2, 0] == 0
    assert columns.top_logprobs[0, :3] == pytest.approx(wanted[0, [7, 30, 8]], abs=1e-6)
    assert columns.top_logprobs[2, 0] == pytest.approx(wanted[2, 0], abs=1e-6)
    assert columns.top_ids[1, :3].tolist() == np.argsort(-wanted[1])[:3].tolist()
