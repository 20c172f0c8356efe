"""What a worker is told of a request before the first plan that names its row."""

from __future__ import annotations

import msgspec
import numpy as np

from ipc.arena import RowSetup
from scheduler_proc.request import Request

OFF = -1
_ENCODER = msgspec.msgpack.Encoder()
_LIST_HEADER_BYTES = 5
_SLACK_BYTES = 16


def encode(request: Request) -> bytes:
    """The msgpack RowSetup of a request that has a row."""
    params = request.params
    allowed = params.allowed_token_ids
    return _ENCODER.encode(
        RowSetup(
            row=request.row,
            num_prompt=request.num_prompt,
            seed=request.seed,
            temperature=0.0 if params.greedy else params.temperature,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            min_position=request.num_prompt + params.min_tokens if params.min_tokens else 0,
            stop_ids=request.stop_ids,
            logprobs=OFF if params.num_logprobs is None else params.num_logprobs,
            prompt_logprobs=OFF if params.prompt_logprobs is None else params.prompt_logprobs,
            logit_bias=params.logit_bias,
            bad_words=request.bad_words,
            allowed=b"" if allowed is None else np.array(allowed, np.int32).tobytes(),
            history=request.tokens.tobytes() if request.wants_history else b"",
            thinking=request.thinking,
            logprob_ids=np.array(params.logprob_token_ids, np.int32).tobytes() if params.logprob_token_ids else b"",
            scores=request.scores,
        )
    )


def size_without_history(request: Request) -> int:
    """An upper bound of the bytes that `encode` gives for this request, less its history."""
    history = 4 * len(request.tokens) if request.wants_history else 0
    # Row and history length may take some bytes more later on.
    return len(encode(request)) - history + _SLACK_BYTES


def size(request: Request, num_tokens: int) -> int:
    """An upper bound of the bytes that `encode` gives when so many tokens are known."""
    return request.setup_bytes + (4 * num_tokens if request.wants_history else 0)


def pack_list(setups: list[bytes]) -> bytes:
    """One msgpack array of already encoded setups: up to 5 bytes more than they are."""
    count = len(setups)
    if count < 16:
        header = bytes([0x90 | count])
    elif count < 2**16:
        header = b"\xdc" + count.to_bytes(2, "big")
    else:
        header = b"\xdd" + count.to_bytes(4, "big")
    return b"".join([header, *setups])


def room(capacity: int) -> int:
    """Bytes of setups that a blob of this capacity takes for certain."""
    return capacity - _LIST_HEADER_BYTES
