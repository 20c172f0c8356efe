"""quire end to end, with random weights of Llama-3.1-8B's shape: time to ready, decode steps, and requests offline."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.gpu.limits import LLAMA_8B, TINY, Lengths, Machine, Model, decode_seconds, offline_seconds, sharegpt_like
from bench.gpu.machine import OF_QUIRE
from bench.gpu.part import Part, run

DECODE = ((1, 1024, 256), (64, 1024, 128), (256, 1024, 128))  # requests, tokens before, tokens that each decodes
SETTINGS = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "max_model_len": 4096, "enable_prefix_caching": False}
POLL_SECONDS = 0.002
FIRST_ORDINARY_TOKEN = 300


def main(part: Part) -> None:
    missing = [name for name in OF_QUIRE if importlib.util.find_spec(name) is None]
    if missing:
        part.skip("engine", f"missing here: {', '.join(missing)}")
        return
    from ipc.errors import ConfigError
    from quire import LLM

    model = TINY if part.dry else LLAMA_8B
    settings = {**SETTINGS, **({"max_num_seqs": 16, "max_num_batched_tokens": 256, "num_blocks": 512} if part.dry else {})}
    settings |= json.loads(os.environ.get("BENCH_GPU_SETTINGS", "{}"))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        began = time.perf_counter()
        try:
            llm = LLM(folder, device=part.device, load_format="dummy", dtype="auto", log_level="info", **settings)
        except ConfigError as refusal:
            part.skip("engine", f"quire refuses: {refusal}")
            return
        with llm:
            part.record("ready", seconds=time.perf_counter() - began)
            llm.generate([[FIRST_ORDINARY_TOKEN] * 4] * 2, _params([4, 4]), False)
            part.record("cache", blocks=llm.engine_stats().blocks_total)
            for requests, context, tokens in ((2, 32, 8),) if part.dry else DECODE:
                _decode(part, llm, model, requests, context, tokens)
            for count in (4,) if part.dry else (256, 1000):
                _offline(part, llm, model, [(a % 60 + 4, b % 8 + 2) if part.dry else (a, b) for a, b in sharegpt_like(count)])


def write_model(folder: Path, model: Model) -> None:
    """config.json and a tokenizer of the right size; the weights are made by the engine."""
    from bench.models import write_word_tokenizer

    (folder / "config.json").write_text(json.dumps(model.config()))
    write_word_tokenizer(folder, model.vocab)


def prompts(lengths: list[int], vocab: int, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    numbers = random.Random(seed)
    return [[numbers.randrange(FIRST_ORDINARY_TOKEN, vocab) for _ in range(length)] for length in lengths]


def _params(answers: list[int]) -> list[Any]:
    from quire import SamplingParams

    return [SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True) for answer in answers]


def _decode(part: Part, llm: Any, model: Model, requests: int, context: int, tokens: int) -> None:
    """The step time while all requests decode: from the counters in shared memory, read while the call runs in another thread."""
    failures: list[BaseException] = []
    texts, params = prompts([context] * requests, model.vocab, seed=requests), _params([tokens] * requests)

    def call() -> None:
        try:
            llm.generate(texts, params, False)
        except BaseException as error:
            failures.append(error)

    prefilled = llm.engine_stats().prompt_tokens + requests * context
    thread = threading.Thread(target=call)
    thread.start()
    seen: list[tuple[float, int, int]] = []
    while thread.is_alive():
        stats = llm.engine_stats()
        if stats.num_running == requests and stats.prompt_tokens >= prefilled and (not seen or stats.steps > seen[-1][1]):
            seen.append((time.perf_counter(), stats.steps, stats.generation_tokens))
        time.sleep(POLL_SECONDS)
    thread.join()
    if failures:
        part.fault(f"decoding {requests} x {context}: {failures[0]}")
        return
    name = f"decode {requests} x {context}"
    if len(seen) < 2:
        part.skip(name, "too few steps were seen while all requests decoded")
        return
    (start, first_step, first_token), (end, last_step, last_token) = seen[len(seen) // 8], seen[-1]
    seconds = (end - start) / max(1, last_step - first_step)
    figures: dict[str, Any] = {
        "step_ms": 1e3 * seconds,
        "tok_s": (last_token - first_token) / max(end - start, 1e-9),
        "steps": last_step - first_step,
    }
    if part.ceilings and not part.dry:
        limit = decode_seconds(Machine(**part.ceilings), requests, context + tokens // 2, model)
        figures |= {"limit_ms": 1e3 * limit, "of_limit_%": 100 * limit / seconds}
    part.record(name, **figures)


def _offline(part: Part, llm: Any, model: Model, requests: list[Lengths]) -> None:
    texts, params = prompts([length for length, _ in requests], model.vocab, len(requests)), _params([answer for _, answer in requests])
    steps, began = llm.engine_stats().steps, time.perf_counter()
    outputs = llm.generate(texts, params, False)
    seconds = time.perf_counter() - began
    made = sum(len(output.outputs[0].token_ids) for output in outputs)
    wanted = sum(answer for _, answer in requests)
    if made != wanted:
        part.fault(f"{len(requests)} requests offline gave {made} tokens, not {wanted}")
    figures: dict[str, Any] = {
        "out_tok_s": made / seconds, "in_tok": sum(length for length, _ in requests), "out_tok": made, "seconds": seconds,
        "steps": llm.engine_stats().steps - steps,
    }  # fmt: skip
    if part.ceilings and not part.dry:
        limit = offline_seconds(Machine(**part.ceilings), requests, model=model)
        figures |= {"limit_tok_s": made / limit, "of_limit_%": 100 * limit / seconds}
    part.record(f"offline {len(requests)} ShareGPT-like", **figures)


if __name__ == "__main__":
    run(main)
