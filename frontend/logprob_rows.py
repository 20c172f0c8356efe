"""The columns of log-probabilities in the scheduler's messages, as rows: one for each token."""

from __future__ import annotations

import itertools

import numpy as np

from ipc.messages import Logprobs, PromptLogprobs

# (logprob, rank, top ids, top logprobs) of one token
LogprobRow = tuple[float, int, list[int], list[float]]


def token_rows(message: Logprobs) -> dict[int, LogprobRow]:
    """By place in the token column of the message that brought these."""
    at = np.frombuffer(message.at, dtype=np.uint32).tolist()
    return dict(zip(at, _rows(message)))


def prompt_rows(message: PromptLogprobs) -> dict[int, LogprobRow]:
    """By position in the prompt."""
    return dict(zip(itertools.count(message.start), _rows(message)))


def _rows(message: Logprobs | PromptLogprobs) -> list[LogprobRow]:
    chosen = np.frombuffer(message.logprob, dtype=np.float32).tolist()
    ranks = np.frombuffer(message.rank, dtype=np.int32).tolist()
    ids = np.frombuffer(message.top_ids, dtype=np.int32).reshape(len(chosen), message.width).tolist()
    values = np.frombuffer(message.top_logprobs, dtype=np.float32).reshape(len(chosen), message.width).tolist()
    return list(zip(chosen, ranks, ids, values))
