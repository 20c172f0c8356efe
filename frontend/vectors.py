"""Embeddings on their way to the caller: the stream that waits for a vector, and what a caller may have done to it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from frontend.behind_clients import TURNS, in_turn
from frontend.outputs import EmbeddingOutput, EmbeddingRequestOutput
from frontend.preparation import Truncation
from frontend.stream import Gather, Stream, Work
from frontend.tokenizer import Tokenizer
from ipc.errors import InvalidRequestError, RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from frontend.engine_client import EngineClient

F32 = npt.NDArray[np.float32]


class VectorStream(Stream):
    """Waits for one vector. vector: as it came, float32[hidden]; set before `end`, or never."""

    __slots__ = ("_gather", "vector")

    def __init__(self, work: Work, tokenizer: Tokenizer, gather: Gather) -> None:
        super().__init__(work, tokenizer)
        self._gather = gather
        self.vector = b""

    def push(self, token: int) -> bool:
        """No token ever comes."""
        return True

    def push_last(self, token: int) -> None:
        """Nor a last one."""

    def on_end(self) -> None:
        if self.error is None and not self.vector:
            self.error = RequestFailedError(f"request {self.work.request_id} ended without a vector ({self.reason})")
        self._gather.ended(self.error)


async def compute(client: EngineClient, works: Sequence[Work]) -> list[VectorStream]:
    """The streams of these embeddings, when all have their vectors. If one fails, the others are aborted."""
    turns = TURNS.get()
    if turns is None:
        return await _compute(client, works)
    return [stream for [stream] in await in_turn(turns, [partial(_compute, client, [work]) for work in works])]


async def _compute(client: EngineClient, works: Sequence[Work]) -> list[VectorStream]:
    if not works:
        return []
    gather = Gather(asyncio.get_running_loop(), len(works))
    streams = [VectorStream(work, client.tokenizer, gather) for work in works]
    try:
        client.open(streams)
        await gather.future
    finally:
        client.drop(streams)
    return streams


def check_dimensions(dimensions: int | None, hidden_size: int) -> None:
    """Raise InvalidRequestError for a length that the model's vectors do not have."""
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise InvalidRequestError(
            f"dimensions must be 1 to {hidden_size}, the length of this model's vectors, got {dimensions}", "dimensions"
        )


def finish(vector: bytes, dimensions: int | None, normalize: bool) -> F32:
    """The first `dimensions` numbers, of length 1 together where that is wanted. A vector of zeros stays one."""
    numbers: F32 = np.frombuffer(vector, np.float32)[:dimensions]
    if not normalize:
        return numbers
    length = np.linalg.norm(numbers.astype(np.float64))
    return numbers if length == 0 else (numbers / length).astype(np.float32)


async def embed(
    client: EngineClient,
    prompt: str | list[int],
    *,
    dimensions: int | None = None,
    normalize: bool = True,
    truncate_prompt_tokens: int | None = None,
    priority: int = 0,
    cache_salt: str = "",
) -> EmbeddingRequestOutput:
    """One prompt's vector, for the Python API. Raises as EngineClient's methods do."""
    check_dimensions(dimensions, client.spec.model.hidden_size)
    if truncate_prompt_tokens is not None and (truncate_prompt_tokens < -1 or truncate_prompt_tokens == 0):
        raise InvalidRequestError("truncate_prompt_tokens must be at least 1, or -1", "truncate_prompt_tokens")
    work = await client.preparer.prepare_embedding(
        prompt,
        priority=priority,
        cache_salt=cache_salt,
        truncation=None if truncate_prompt_tokens is None else Truncation(truncate_prompt_tokens),
    )
    [stream] = await compute(client, [work])
    output = EmbeddingOutput(finish(stream.vector, dimensions, normalize).tolist())
    return EmbeddingRequestOutput(work.request_id, output, work.prompt_ids, True, stream.cached_tokens)
