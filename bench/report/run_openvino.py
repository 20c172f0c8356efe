"""OpenVINO GenAI's ContinuousBatchingPipeline. The model is a directory that optimum-cli exported."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from bench.report.runner import Job, Request, Run, main


def start(job: Job) -> Run:
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = 2
    scheduling.max_num_seqs = 64
    scheduling.max_num_batched_tokens = 256
    scheduling.enable_prefix_caching = "e" in job.works
    pipeline = genai.ContinuousBatchingPipeline(job.model, scheduling, "CPU", {"INFERENCE_NUM_THREADS": job.threads, **job.settings})
    numbers = itertools.count()

    def config(request: Request) -> genai.GenerationConfig:
        found = genai.GenerationConfig()
        found.max_new_tokens = found.min_new_tokens = request.out
        found.ignore_eos, found.do_sample = True, False
        return found

    def run(requests: Sequence[Request], _stamps: bool) -> list[list[float]]:
        began = time.perf_counter()
        handles = [
            pipeline.add_request(next(numbers), openvino.Tensor(np.array([request.prompt], dtype=np.int64)), config(request))
            for request in requests
        ]
        stamps: list[list[float]] = [[] for _ in requests]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter() - began
            for own, handle in zip(stamps, handles):
                while handle.can_read():
                    for output in handle.read().values():
                        own += [now] * len(output.generated_ids)
        return stamps

    return run


if __name__ == "__main__":
    main(start)
