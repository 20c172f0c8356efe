"""What each row asks of the sampler: numpy columns for what every row has, lists for what few rows have.

A bit per feature says which rows need which code, so that one OR over the scheduled rows tells what a step has to do at all.
Written only by `setup` (and `drop`, for a feature that has run its course); everyone else reads.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

from gpu_workers.sampling.thinking import Thoughts
from ipc.arena import RowSetup
from ipc.sampling_params import GREEDY_BELOW

Ids = npt.NDArray[np.int64]


class Feature(enum.IntFlag):
    """Bits of RowParams.features."""

    RANDOM = 1
    TOP_K = 2
    TOP_P = 4
    MIN_P = 8
    PENALTY = 16
    BIAS = 32
    BAD_WORDS = 64
    ALLOWED = 128
    MIN_TOKENS = 256
    LOGPROBS = 512
    THINKING = 2048
    SCORES = 4096
    GRAMMAR = 1024  # never in a row's own bits: set for the entries of one step that come with a mask


FORBIDS = Feature.BAD_WORDS | Feature.MIN_TOKENS
CHANGES = Feature.PENALTY | Feature.BIAS | Feature.ALLOWED | Feature.GRAMMAR | FORBIDS  # these alter logits, and so greedy rows too
REMEMBERS = Feature.PENALTY | Feature.BAD_WORDS | Feature.THINKING  # later tokens of these depend on those sampled before
CHOOSES = CHANGES | Feature.RANDOM | Feature.SCORES  # without one of these a row's token is the argmax of its raw logits


class BadWords:
    """One row's forbidden sequences: single tokens at once, longer ones by their last token and what must precede it."""

    def __init__(self, sequences: list[list[int]], vocab_size: int) -> None:
        self.singles: Ids = known_ids([each[0] for each in sequences if len(each) == 1], vocab_size)
        self.longer = [(each[:-1], each[-1]) for each in sequences if len(each) > 1 and 0 <= each[-1] < vocab_size]
        self.context = max((len(prefix) for prefix, _ in self.longer), default=0)

    def forbidden(self, tail: list[int]) -> Ids:
        """Ids that would complete a sequence after `tail`, the last `context` (or fewer) tokens of the row's history."""
        ends = [last for prefix, last in self.longer if tail[len(tail) - len(prefix) :] == prefix and len(prefix) <= len(tail)]
        return np.concatenate((self.singles, np.array(ends, np.int64))) if ends else self.singles


class RowParams:
    """Columns over num_rows places.

    features int32, temperature and min_p float32, top_k int64, top_p float64, seed uint64 (negative seeds wrap), min_position int64,
    repetition, presence and frequency float32, logprobs and prompt_logprobs int32 (-1 off). bias, bad_words, allowed, stop_ids: by row,
    only rows that have them. history: int32 as given, only rows that were given one; since: tokens sampled after it, only rows
    whose bad words need them. thoughts: the reasoning of rows that have a limit of it. logprob_ids: what rows want reported instead of
    the most likely tokens.
    """

    def __init__(self, num_rows: int, vocab_size: int, max_logprobs: int) -> None:
        self.vocab_size = vocab_size
        self.max_logprobs = max_logprobs
        self.features = np.zeros(num_rows, np.int32)
        self.temperature = np.zeros(num_rows, np.float32)
        self.min_p = np.zeros(num_rows, np.float32)
        self.top_k = np.zeros(num_rows, np.int64)
        self.top_p = np.ones(num_rows, np.float64)
        self.seed = np.zeros(num_rows, np.uint64)
        self.min_position = np.zeros(num_rows, np.int64)
        self.repetition = np.ones(num_rows, np.float32)
        self.presence = np.zeros(num_rows, np.float32)
        self.frequency = np.zeros(num_rows, np.float32)
        self.logprobs = np.full(num_rows, -1, np.int32)
        self.prompt_logprobs = np.full(num_rows, -1, np.int32)
        self.bias: dict[int, tuple[Ids, npt.NDArray[np.float32]]] = {}
        self.bad_words: dict[int, BadWords] = {}
        self.allowed: dict[int, Ids] = {}
        self.stop_ids: dict[int, Ids] = {}
        self.history: dict[int, npt.NDArray[np.int32]] = {}
        self.since: dict[int, list[int]] = {}
        self.thoughts: dict[int, Thoughts] = {}
        self.logprob_ids: dict[int, Ids] = {}

    def setup(self, each: RowSetup) -> None:
        """Replace everything known of each.row. Ids outside the vocabulary are left out: they can never be sampled."""
        row, vocab = each.row, self.vocab_size
        features = self._columns(each)
        for kept in (self.bias, self.bad_words, self.allowed, self.stop_ids, self.history, self.since, self.thoughts, self.logprob_ids):
            kept.pop(row, None)
        if each.history:
            self.history[row] = np.frombuffer(each.history, np.int32)
        if each.logit_bias:
            pairs = {token: value for token, value in each.logit_bias.items() if 0 <= token < vocab}
            self.bias[row] = np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.float32)
            features |= Feature.BIAS
        if each.bad_words:
            self.bad_words[row] = BadWords([word for word in each.bad_words if word], vocab)
            if self.bad_words[row].context:
                self.since[row] = []
            features |= Feature.BAD_WORDS
        if each.allowed:
            self.allowed[row] = known_ids(np.frombuffer(each.allowed, np.int32), vocab)
            features |= Feature.ALLOWED
        if each.min_position and each.stop_ids:
            self.stop_ids[row] = known_ids(each.stop_ids, vocab)
            features |= Feature.MIN_TOKENS
        if each.thinking is not None:
            self.thoughts[row] = Thoughts(each.thinking, np.frombuffer(each.history, np.int32)[each.num_prompt :].tolist())
            features |= Feature.THINKING
        if each.logprob_ids:
            self.logprob_ids[row] = np.frombuffer(each.logprob_ids, np.int32).astype(np.int64)
        self.features[row] = features

    def drop(self, rows: npt.NDArray[np.integer], feature: Feature) -> None:
        """These rows do not need `feature` any more."""
        self.features[rows] &= ~int(feature)

    def tail(self, row: int) -> list[int]:
        """The last tokens of the row's history, as many as its bad words look at."""
        wanted, since = self.bad_words[row].context, self.since.get(row, [])
        missing = wanted - len(since)
        given = self.history[row][-missing:].tolist() if missing > 0 and row in self.history else []
        return given + (since[-wanted:] if wanted else [])

    def _columns(self, each: RowSetup) -> Feature:
        row, features = each.row, Feature(0)
        self.temperature[row], self.seed[row] = each.temperature, each.seed & (2**64 - 1)
        self.top_k[row], self.top_p[row], self.min_p[row] = min(each.top_k, self.vocab_size), each.top_p, each.min_p
        self.repetition[row], self.presence[row] = each.repetition_penalty, each.presence_penalty
        self.frequency[row], self.min_position[row] = each.frequency_penalty, each.min_position
        self.logprobs[row], self.prompt_logprobs[row] = min(each.logprobs, self.max_logprobs), each.prompt_logprobs
        if each.temperature >= GREEDY_BELOW and not each.scores:
            # The filters keep the most likely token, so greedy rows do without them.
            features |= Feature.RANDOM
            features |= Feature.TOP_K if 0 < each.top_k < self.vocab_size else 0
            features |= Feature.TOP_P if each.top_p < 1 else 0
            features |= Feature.MIN_P if each.min_p > 0 else 0
        if (each.repetition_penalty, each.presence_penalty, each.frequency_penalty) != (1, 0, 0):
            features |= Feature.PENALTY
        if each.logprobs >= 0:
            features |= Feature.LOGPROBS
            features |= Feature.SCORES if each.scores else 0
        return features


def known_ids(ids: npt.ArrayLike, vocab_size: int) -> Ids:
    """The distinct ids that the vocabulary has, ascending."""
    distinct = np.unique(np.asarray(ids, np.int64))
    return distinct[(distinct >= 0) & (distinct < vocab_size)]
