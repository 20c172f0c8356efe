"""Work that no client waits for (the lines of batches): marked, so that it comes last everywhere, and let into the engine bit by bit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

# Set where such work is prepared and run: its places in the engine.
TURNS: ContextVar[asyncio.Semaphore | None] = ContextVar("TURNS", default=None)


async def let_clients_by() -> None:
    """Give the loop to what else is due, if this is such work: a line may hold hundreds of prompts."""
    if TURNS.get() is not None:
        await asyncio.sleep(0)


async def in_turn(turns: asyncio.Semaphore, jobs: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """All jobs' results, in order; each job has a place while it runs. If one fails, the others are cancelled."""

    async def run(job: Callable[[], Awaitable[Result]]) -> Result:
        async with turns:
            return await job()

    tasks = [asyncio.ensure_future(run(job)) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
