"""Where the Transformers library means the same by a parameter, its processors must leave the same distribution to draw from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from gpu_workers.sampling.philox import uniform
from ipc.arena import RowSetup
from tests.gpu_workers.sampling import reference as ref

VOCAB = 200
HISTORY = [5, 9, 5, 17, 40, 41, 9]
BAD = [[3], [9, 7], [41, 9, 11], [40, 9, 12]]

CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "temperature": ({"temperature": 0.6}, [hf.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 12}, [hf.TopKLogitsWarper(12)]),
    "top_p": ({"top_p": 0.83}, [hf.TopPLogitsWarper(0.83)]),
    "top_p_tiny": ({"top_p": 1e-6}, [hf.TopPLogitsWarper(1e-6)]),
    "min_p": ({"min_p": 0.07}, [hf.MinPLogitsWarper(0.07)]),
    "top_k_top_p": (
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9},
        [hf.TemperatureLogitsWarper(1.3), hf.TopKLogitsWarper(40), hf.TopPLogitsWarper(0.9)],
    ),
    "repetition": ({"repetition_penalty": 1.7}, [hf.RepetitionPenaltyLogitsProcessor(1.7)]),
    "bad_words": ({"bad_words": BAD}, [hf.NoBadWordsLogitsProcessor(BAD, eos_token_id=None)]),
    "min_length": (
        {"min_position": len(HISTORY) + 1, "stop_ids": [7, 8]},
        [hf.MinLengthLogitsProcessor(len(HISTORY) + 1, [7, 8], device="cpu")],
    ),
    "long_enough": (
        {"min_position": len(HISTORY), "stop_ids": [7, 8]},
        [hf.MinLengthLogitsProcessor(len(HISTORY), [7, 8], device="cpu")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_tokens(name: str) -> None:
    wishes, processors = CASES[name]
    count, position = 400, len(HISTORY)
    logits = torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    logits[:, [3, 5, 7, 8, 9, 11, 12]] += 5
    scores = logits.clone()
    for processor in processors:
        scores = processor(torch.tensor([HISTORY] * count), scores)
    chances = torch.softmax(scores.double(), -1).numpy()
    setups = [RowSetup(row, 4, row, **{"temperature": 1.0, "history": ref.packed(HISTORY)} | wishes) for row in range(count)]
    tokens = ref.sampler_for(setups, VOCAB).sample(logits, np.arange(count), np.full(count, position)).tokens
    u = uniform(np.arange(count, dtype=np.uint64), np.full(count, position))
    unclear = 0
    for entry in range(count):
        wanted, near = ref.inverse(chances[entry].tolist(), u[entry])
        unclear += near
        assert near or tokens[entry] == wanted, entry
    assert unclear < 30
