"""The Transformers library's continuous batching on the same machine, model shape and requests, for comparison."""

from __future__ import annotations

import importlib.util
import os
import time

from bench.gpu.engine import prompts
from bench.gpu.limits import LLAMA_8B, TINY, sharegpt_like
from bench.gpu.part import Part, run

COUNT = 256  # of the requests that quire gets, too: a thousand may not fit the time


def main(part: Part) -> None:
    if importlib.util.find_spec("transformers") is None:
        part.skip("transformers", "not installed")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # it would look for attention kernels on the hub
    import torch
    import transformers

    shape = TINY if part.dry else LLAMA_8B
    config = transformers.LlamaConfig(
        **{key: value for key, value in shape.config().items() if key not in ("architectures", "torch_dtype")}
    )
    began = time.perf_counter()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(part.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="paged|sdpa").eval()
    torch.set_default_dtype(torch.float32)
    part.record("model", seconds=time.perf_counter() - began, version=transformers.__version__)
    chosen = [(a % 60 + 4, b % 8 + 2) for a, b in sharegpt_like(3)] if part.dry else sharegpt_like(COUNT)
    texts = prompts([length for length, _ in chosen], shape.vocab, len(chosen))
    generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1000)
    batching = None
    if part.dry:  # on a CPU it asks psutil for the free memory, and finds none without it
        from transformers.generation.continuous_batching import cache

        cache.get_device_and_memory_breakdown = lambda: (torch.device("cpu"), 1 << 30, 0, 0)
        batching = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    made = 0
    with model.continuous_batching_context_manager(generation_config=generation, continuous_batching_config=batching) as manager:
        part.record("ready", seconds=time.perf_counter() - began)
        began = time.perf_counter()
        for number, (text, (_, answer)) in enumerate(zip(texts, chosen)):
            manager.add_request(text, request_id=str(number), max_new_tokens=answer)
        finished = 0
        while finished < len(chosen):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                finished += 1
                made += len(result.generated_tokens)
                if result.error:
                    part.fault(f"request {result.request_id}: {result.error}"[:500])
            elif result is None and not manager.is_running():
                part.fault("its thread ended before all requests were done")
                return
        seconds = time.perf_counter() - began
    part.record(f"offline {len(chosen)} ShareGPT-like", out_tok_s=made / seconds, out_tok=made, seconds=seconds)


if __name__ == "__main__":
    run(main)
