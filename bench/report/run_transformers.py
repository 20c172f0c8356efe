"""Transformers: `generate` on static batches, sorted by prompt length and left-padded. Its limits: a batch runs to its longest output,
and no prefix is shared, so it is left out of e."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.report.runner import Job, Request, Run, main

BATCH = 64


def start(job: Job) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto").eval()

    class Clock:
        """A streamer that keeps the time of each token; what it gets first is the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _ids: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def batch(requests: Sequence[Request], clock: Clock | None) -> None:
        width, out = max(len(request.prompt) for request in requests), max(request.out for request in requests)
        ids = torch.tensor([[0] * (width - len(request.prompt)) + request.prompt for request in requests])
        mask = torch.tensor([[0] * (width - len(request.prompt)) + [1] * len(request.prompt) for request in requests])
        config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=out, min_new_tokens=out)
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, generation_config=config, streamer=clock)

    def run(requests: Sequence[Request], stamps: bool) -> list[list[float]]:
        if stamps and len(requests) == 1:
            clock, began = Clock(), time.perf_counter()
            batch(requests, clock)
            return [[stamp - began for stamp in clock.times[1:]]]
        ordered = sorted(requests, key=lambda request: len(request.prompt))
        for at in range(0, len(ordered), BATCH):
            batch(ordered[at : at + BATCH], None)
        return [[0.0] * request.out for request in requests]

    return run


if __name__ == "__main__":
    main(start)
