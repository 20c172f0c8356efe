"""quire, through AsyncLLM: the engine without HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench.report.runner import Job, Request, Run, main


def start(job: Job) -> Run:
    from quire import AsyncLLM, SamplingParams

    loop = asyncio.new_event_loop()
    settings = {"cpu_threads": job.threads, "max_model_len": job.longest + 16, **job.settings}
    llm = loop.run_until_complete(AsyncLLM.start(job.model, **settings))

    async def one(request: Request, began: float) -> list[float]:
        params = SamplingParams(temperature=0, max_tokens=request.out, ignore_eos=True)
        stamps: list[float] = []
        async for output in llm.generate(request.prompt, params, delta=True):
            stamps += [time.perf_counter() - began] * len(output.outputs[0].token_ids)
        return stamps

    async def everyone(requests: Sequence[Request]) -> list[list[float]]:
        began = time.perf_counter()
        return list(await asyncio.gather(*(one(request, began) for request in requests)))

    return lambda requests, _stamps: loop.run_until_complete(everyone(requests))


if __name__ == "__main__":
    main(start)
