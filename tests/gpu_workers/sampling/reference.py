"""What the sampler must do, one row at a time in plain Python and float64, written from the definitions and not from the sampler."""

from __future__ import annotations

import math

import numpy as np
import torch

from gpu_workers.sampler import Sampler
from gpu_workers.sampling.philox import uniform
from ipc.arena import RowSetup

CPU = torch.device("cpu")
CLOSE = 2e-5  # how near to a boundary a float32 result may fall on its other side


def tokens_of(setup: RowSetup) -> list[int]:
    return np.frombuffer(setup.history, np.int32).tolist()


def packed(tokens: object) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def changed(logits: list[float], setup: RowSetup, position: int) -> list[float]:
    """Logits after allowed ids, bias, bad words, min tokens and penalties."""
    history = tokens_of(setup)
    output = history[setup.num_prompt :]
    result = list(logits)
    if setup.allowed:
        allowed = set(np.frombuffer(setup.allowed, np.int32).tolist())
        result = [value if token in allowed else -math.inf for token, value in enumerate(result)]
    for token, bias in setup.logit_bias.items():
        result[token] += bias
    for word in setup.bad_words:
        if len(word) == 1 or history[-(len(word) - 1) :] == word[:-1]:
            result[word[-1]] = -math.inf
    if position < setup.min_position:
        for token in setup.stop_ids:
            result[token] = -math.inf
    for token in range(len(result)):
        if token in history:
            factor = setup.repetition_penalty
            result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
        times = output.count(token)
        result[token] -= setup.frequency_penalty * times + (setup.presence_penalty if times else 0)
    return result


def probabilities(logits: list[float], setup: RowSetup) -> tuple[list[float], bool]:
    """What a random row draws from, and whether a filter's boundary is too near to call in float32."""
    top = max(logits)
    weights = [math.exp((value - top) / setup.temperature) for value in logits]
    unclear = setup.min_p > 0 and any(abs(weight - setup.min_p) < CLOSE * setup.min_p for weight in weights)
    weights = [weight if weight >= setup.min_p else 0.0 for weight in weights]
    if 0 < setup.top_k < len(logits):
        kth = sorted(logits, reverse=True)[setup.top_k - 1]
        weights = [weight if value >= kth else 0.0 for weight, value in zip(weights, logits)]
    if setup.top_p < 1:
        wanted, reached = setup.top_p * math.fsum(weights), 0.0
        for token in sorted(range(len(logits)), key=lambda token: -logits[token]):
            unclear = unclear or abs(reached + weights[token] - wanted) < CLOSE * wanted
            reached += weights[token]
            if reached >= wanted:
                weights = [weight if value >= logits[token] else 0.0 for weight, value in zip(weights, logits)]
                break
    total = math.fsum(weights)
    return [weight / total for weight in weights], unclear


def inverse(chances: list[float], u: float) -> tuple[int, bool]:
    """The token of `u`, and whether it lies too near to another's share."""
    edges = np.cumsum(chances)
    token = int(np.searchsorted(edges, u * edges[-1], side="right"))
    return token, bool(np.abs(edges - u).min() < CLOSE)


def choose(logits: list[float], setup: RowSetup, position: int) -> tuple[int, bool]:
    """The row's token, and whether float32 may rightly give another."""
    result = changed(logits, setup, position)
    if setup.temperature == 0:
        best = max(result)
        rivals = [value for value in result if best - value < 1e-4 * max(1.0, abs(best))]
        return result.index(best), len(rivals) > 1 and result != list(logits)
    chances, unclear = probabilities(result, setup)
    seed = np.array([setup.seed & (2**64 - 1)], np.uint64)
    token, near = inverse(chances, float(uniform(seed, np.array([position]))[0]))
    return token, unclear or near


def sampler_for(setups: list[RowSetup], vocab: int, max_logprobs: int = 20) -> Sampler:
    sampler = Sampler(1 + max(each.row for each in setups), vocab, max_logprobs, CPU)
    sampler.setup(setups)
    return sampler


def rows_of(setups: list[RowSetup]) -> np.ndarray:
    return np.array([each.row for each in setups], np.int32)


def random_setup(rng: np.random.Generator, row: int, vocab: int) -> RowSetup:
    """Any mixture of features; no combination that forbids every token."""

    def some(value: object, default: object, chance: float = 0.35) -> object:
        return value if rng.random() < chance else default

    ids = rng.permutation(vocab)
    history = rng.integers(0, vocab, int(rng.integers(1, 40)))
    bad = [[int(ids[0])], [*history[-2:].tolist(), int(ids[1])], [int(history[-1]), int(ids[2])], [int(ids[3]), int(ids[4])]]
    return RowSetup(
        row=row,
        num_prompt=int(rng.integers(1, len(history) + 1)),
        seed=int(rng.integers(-(2**63), 2**63 - 1)),
        temperature=some(float(np.float32(rng.uniform(0.2, 2))), 0.0, 0.75),
        top_k=some(int(rng.integers(1, vocab + 3)), 0),
        top_p=some(float(rng.uniform(0.01, 1)), 1.0),
        min_p=some(float(np.float32(rng.uniform(0, 0.5))), 0.0),
        repetition_penalty=some(float(np.float32(rng.uniform(0.5, 2))), 1.0),
        presence_penalty=some(float(np.float32(rng.uniform(-2, 2))), 0.0),
        frequency_penalty=some(float(np.float32(rng.uniform(-2, 2))), 0.0),
        min_position=some(int(len(history) + rng.integers(0, 2)), 0),
        stop_ids=[int(ids[5])],
        logprobs=some(int(rng.integers(0, min(8, vocab + 1))), -1),
        logit_bias=some({int(token): float(np.float32(rng.uniform(-5, 5))) for token in ids[2:5]}, {}),
        bad_words=some(bad, []),
        allowed=some(packed(ids[5 if vocab < 20 else 1 :]) if vocab > 7 else b"", b""),
        history=packed(history),
    )
