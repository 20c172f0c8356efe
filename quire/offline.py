"""Runs a batch of prompts on the engine's loop with a bounded number in flight, and hands each finished one to a plain queue."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ipc.config import SchedulerConfig
from ipc.errors import QueueFullError

Output = TypeVar("Output")

# Place in the list, and what came of it. None: all are done, or the batch was cancelled.
Results = queue.SimpleQueue[tuple[int, Output] | BaseException | None]


def in_flight_limit(config: SchedulerConfig) -> int:
    """Enough to keep every row of the batch busy while finished requests are replaced, and within what the queue takes."""
    return max(1, min(config.max_queued_requests, 2 * config.max_num_seqs))


async def run(work: Callable[[int], Awaitable[Output]], weights: Sequence[int], limit: int, results: Results[Output]) -> None:
    """work(index) for each of `weights`, the requests it makes, with up to `limit` requests in flight.

    The first error cancels the rest and is the last thing put into `results`.
    """
    free = limit
    freed = asyncio.Event()

    async def one(index: int, weight: int) -> None:
        nonlocal free
        try:
            results.put((index, await _patiently(work, index)))
        finally:
            free += weight
            freed.set()

    try:
        async with asyncio.TaskGroup() as group:
            for index, wanted in enumerate(weights):
                weight = min(wanted, limit)
                while free < weight:
                    freed.clear()
                    await freed.wait()
                free -= weight
                group.create_task(one(index, weight))
    except BaseExceptionGroup as errors:
        results.put(errors.exceptions[0])
    except asyncio.CancelledError:
        results.put(None)
        raise
    else:
        results.put(None)


async def _patiently(work: Callable[[int], Awaitable[Output]], index: int) -> Output:
    """A full queue is no error for a caller who waits for everything anyway."""
    while True:
        try:
            return await work(index)
        except QueueFullError as error:
            await asyncio.sleep(min(max(error.retry_after, 0.05), 5.0))
