"""Prepared work to `RequestOutput`s: whole, or as they grow. What waits here waits for all of its streams with one wake-up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from frontend.behind_clients import TURNS, in_turn
from frontend.engine_client import EngineClient
from frontend.outputs import CompletionOutput, RequestOutput
from frontend.stream import CollectStream, DeltaStream, Gather, Stream, Work
from ipc.sampling_params import SamplingParams


async def complete(
    client: EngineClient,
    prompt: str | list[int],
    params: SamplingParams,
    *,
    request_id: str | None = None,
    priority: int = 0,
    cache_salt: str = "",
) -> RequestOutput:
    """All n completions of one prompt, its text or its token ids, when they are done. Cancelling the caller aborts them.

    Raises as EngineClient does.
    """
    works = await client.preparer.prepare(prompt, params, request_id=request_id, priority=priority, cache_salt=cache_salt)
    return (await run(client, [works]))[0]


async def run(client: EngineClient, prompts: Sequence[Sequence[Work]]) -> list[RequestOutput]:
    """Compute several prompts' completions. If one fails, the others are aborted."""
    turns = TURNS.get()
    if turns is None:
        return await _run(client, prompts)
    singles = iter(await in_turn(turns, [partial(_run, client, [[work]]) for prompt in prompts for work in prompt]))
    return [_joined([output for [output] in itertools.islice(singles, len(prompt))]) for prompt in prompts]


async def grow(client: EngineClient, works: Sequence[Work]) -> AsyncGenerator[RequestOutput, None]:
    """Compute one prompt's completions; each item carries only what is new since the one before, of every completion that has
    something new.

    The last item has finished=True. Leaving the iterator early aborts the request.
    """
    news = asyncio.Event()
    streams = [DeltaStream(work, client.tokenizer, news.set) for work in works]
    client.open(streams)
    reported: set[int] = set()
    try:
        while len(reported) < len(streams):
            await news.wait()
            news.clear()
            outputs = []
            for stream in streams:
                if stream.work.index in reported:
                    continue
                if stream.error is not None:
                    raise stream.error
                output = stream.take()
                if output.finish_reason is not None:
                    reported.add(stream.work.index)
                if output.token_ids or output.text or output.finish_reason is not None:
                    outputs.append(output)
            if outputs:
                yield _request_output(streams, outputs, finished=len(reported) == len(streams))
    finally:
        client.drop(streams)


async def _run(client: EngineClient, prompts: Sequence[Sequence[Work]]) -> list[RequestOutput]:
    works = [work for prompt in prompts for work in prompt]
    gather = Gather(asyncio.get_running_loop(), len(works))
    streams = [CollectStream(work, client.tokenizer, gather) for work in works]
    try:
        client.open(streams)
        await gather.future
    finally:
        client.drop(streams)
    outputs, rest = [], iter(streams)
    for prompt in prompts:
        own = list(itertools.islice(rest, len(prompt)))
        outputs.append(_request_output(own, [each.completion() for each in own], finished=True))
    return outputs


def _joined(singles: list[RequestOutput]) -> RequestOutput:
    """One prompt's completions that were computed one by one."""
    first, *others = singles
    first.outputs.extend(output for other in others for output in other.outputs)
    return first


def _request_output(streams: Sequence[Stream], outputs: list[CompletionOutput], finished: bool) -> RequestOutput:
    first = streams[0]
    return RequestOutput(
        request_id=first.work.request_id,
        prompt=first.work.prompt,
        prompt_token_ids=first.work.prompt_ids,
        prompt_logprobs=first.prompt_logprobs(),
        outputs=outputs,
        finished=finished,
        num_cached_tokens=first.cached_tokens,
        metrics=first.metrics(),
    )
