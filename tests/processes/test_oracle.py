"""Greedy tokens through the real processes equal the Transformers library's, alone and in a crowd, whatever the scheduler does.

Each family's model runs under settings that force one mechanism: chunked prefill, preemption, no overlap, no prefix cache. The crowd
mixes lengths, shared prefixes and rows that sample with every kind of parameter; the greedy rows must not notice.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from tests import oracle

OUTPUT = 20
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 24},
    "preempting": {"block_size": 4, "num_blocks": 120, "max_num_seqs": 64},
    "no_overlap": {"overlap": False, "block_size": 4},
    "no_prefix_cache": {"enable_prefix_caching": False, "block_size": 32, "target_step_ms": 1.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: oracle.make_model(tmp_path_factory.mktemp(family), family) for family in oracle.FAMILIES}


def crowd() -> list[tuple[list[int], SamplingParams]]:
    """64 requests: half of them greedy, two families of shared prefixes, lengths 1 to 150."""
    rng = random.Random(5)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(300, oracle.VOCAB_SIZE) for _ in range(count)]

    prefixes = [tokens(40), tokens(100), []]
    noisy = [
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 1},
        {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1},
        {"temperature": 1.0, "min_p": 0.05, "logprobs": 5},
        {"temperature": 0.0, "logit_bias": {5: 10.0}, "bad_words": ["the"], "min_tokens": 3},
        {"temperature": 1.0, "allowed_token_ids": list(range(400, 900)), "prompt_logprobs": 2},
    ]
    requests = []
    for number in range(64):
        prompt = prefixes[number % 3] + tokens(rng.choice([1, 2, 15, 16, 17, 33, 50]))
        if number % 2:
            params = SamplingParams(max_tokens=rng.randrange(1, OUTPUT), ignore_eos=True, **noisy[number // 2 % len(noisy)])  # type: ignore[arg-type]
        else:
            params = SamplingParams(max_tokens=OUTPUT, temperature=0, ignore_eos=True)
        requests.append((prompt, params))
    return requests


# Every mechanism with one family, every family with the two that touch the worker most.
CASES = [("Llama", setting) for setting in SETTINGS] + [(family, "preempting") for family in oracle.FAMILIES[1:]] + [("Qwen3", "chunked")]


@pytest.mark.parametrize(("family", "setting"), CASES)
def test_crowd(models: dict[str, str], family: str, setting: str) -> None:
    requests = crowd()
    with LLM(models[family], dtype="float32", **SETTINGS[setting]) as llm:
        outputs = llm.generate([prompt for prompt, _ in requests], [params for _, params in requests], use_tqdm=False)
        preempted = llm.engine_stats().preemptions
    assert (preempted > 0) == (setting == "preempting")
    for (prompt, params), output in zip(requests, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert len(tokens) == params.max_tokens
        if params.temperature == 0 and not params.logit_bias:
            assert tokens == oracle.greedy(models[family], prompt, OUTPUT), f"prompt of {len(prompt)} tokens"


def test_one_at_a_time_and_again_from_the_cache(models: dict[str, str]) -> None:
    """The second time each prompt is a prefix hit; the answer stays the same."""
    rng = random.Random(6)
    with LLM(models["Qwen3"], dtype="float32") as llm:
        for length in (1, 15, 16, 17, 64, 200):
            prompt = [rng.randrange(300, oracle.VOCAB_SIZE) for _ in range(length)]
            expected = oracle.greedy(models["Qwen3"], prompt, OUTPUT)
            for attempt in range(2):
                output = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True), use_tqdm=False)[0]
                assert list(output.outputs[0].token_ids) == expected
                assert (output.num_cached_tokens or 0) == (0 if attempt == 0 else (length - 1) // 16 * 16)


def test_tensor_parallel_workers_give_the_same_tokens(models: dict[str, str]) -> None:
    prompts = [prompt for prompt, _ in crowd()[:8]]
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    with LLM(models["Llama"], dtype="float32", tensor_parallel_size=2) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == oracle.greedy(models["Llama"], prompt, OUTPUT)


def test_bundled_model(tmp_path: Path) -> None:
    """The demo model as it ships is bfloat16; in float32 its tokens are the oracle's."""
    import torch
    import transformers

    wide = transformers.AutoModelForCausalLM.from_pretrained(oracle.DEMO_MODEL, dtype=torch.float32)
    wide.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((oracle.DEMO_MODEL / file).read_bytes())
    conversations = [
        [{"role": "user", "content": text}]
        for text in ("Count from 3 to 9.", "What is 12 + 30?", "Repeat this text: blue stones sing 407", "Hello!", "Spell the word stone.")
    ]
    with LLM(str(tmp_path), dtype="float32") as llm:
        outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)  # type: ignore[arg-type]
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        assert tokens == oracle.greedy(str(tmp_path), output.prompt_token_ids, 48, ignore_eos=False)
        assert output.outputs[0].finish_reason == "stop"
