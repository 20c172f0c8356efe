"""The whole engine on a real GPU: tokens of the Transformers library, the same with and without graphs, under load, after a kill."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from tests import oracle
from tests.processes.server import Server, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

# float16: what it rounds is an eighth of bfloat16's, and these models, whose weights are random and large, make much of little.
SHAPE: dict[str, Any] = {"hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2, "dtype": "float16"}
# How much less likely than the best token a chosen one may be under the oracle, which computes in float32.
NEAR = 0.25
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    shapes = dict.fromkeys(oracle.FAMILIES, SHAPE) | {"Mistral": {**SHAPE, "sliding_window": 64, "head_dim": 128}}
    return {family: oracle.make_model(tmp_path_factory.mktemp(family), family, **shape) for family, shape in shapes.items()}


def prompts() -> list[list[int]]:
    """1 to 700 tokens, some of which begin alike."""
    base = [300 + (7 * number * number) % 3000 for number in range(700)]
    return [base[: 1 + 43 * number] if number % 2 else base[number : number + 1 + 17 * number] for number in range(16)]


def check_greedy(path: str, prompt: list[int], output: list[int]) -> None:
    import torch

    model = copy.deepcopy(oracle.load(path)).float()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output])).logits[0][len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    assert float((logits.amax(-1) - chosen).max()) <= NEAR


def tokens(llm: LLM, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts(), params)]


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_greedy_tokens_are_the_oracles(family: str, models: dict[str, str]) -> None:
    """Chunked prefill beside decodes, prefix hits, graphs of several sizes."""
    with LLM(models[family], device="cuda", max_num_seqs=16, max_num_batched_tokens=256, num_blocks=2000) as llm:
        for prompt, output in zip(prompts(), tokens(llm)):
            check_greedy(models[family], prompt, output)


def test_graphs_change_nothing(models: dict[str, str]) -> None:
    """Request by request, without shared blocks: every step has the same shape each time. In the second round there are graphs."""
    found = []
    for eager in (True, False):
        with LLM(models["Qwen3"], device="cuda", enforce_eager=eager, enable_prefix_caching=False, num_blocks=500) as llm:
            for _ in range(2):
                found.append([list(llm.generate([prompt], GREEDY)[0].outputs[0].token_ids) for prompt in prompts()[:6]])
    assert found[0] == found[1] == found[2] == found[3]


def test_every_parameter_under_load_and_preemption(models: dict[str, str]) -> None:
    """Seeded requests come out the same in a crowd that does not fit into the KV cache, and a second time."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 50},
        {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1},
        {"temperature": 1.0, "min_p": 0.05, "logprobs": 5, "prompt_logprobs": 2},
        {"temperature": 0.0, "logit_bias": {5: 10.0}, "bad_words": ["the", "once upon"], "min_tokens": 3},
        {"temperature": 1.0, "allowed_token_ids": list(range(400, 900))},
    ]
    params = [SamplingParams(max_tokens=40, ignore_eos=True, seed=number, **wishes[number % 6]) for number in range(48)]
    asked = [prompts()[number % 16] for number in range(48)]
    with LLM(models["Llama"], device="cuda", max_num_seqs=32, max_num_batched_tokens=512, num_blocks=400) as llm:
        outputs = llm.generate(asked, params)
    for number, output in enumerate(outputs):
        generated = list(output.outputs[0].token_ids)
        assert len(generated) == 40
        assert all(0 <= token < oracle.VOCAB_SIZE for token in generated)
        if number % 6 == 5:
            assert all(400 <= token < 900 for token in generated)
        if number % 6 == 3:
            assert output.outputs[0].logprobs is not None and len(output.outputs[0].logprobs) == 40


def test_the_demo_model_and_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 32. The second start measures nothing: it finds what the first one did."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = []
    for _ in range(2):
        with LLM(device="cuda", gpu_memory_utilization=0.3) as llm:
            texts.append(llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=32))[0].outputs[0].text)
    assert texts[0] == texts[1] != ""
    assert len(list((tmp_path / "quire" / "memory").iterdir())) == 1


@pytest.fixture(scope="module")
def server(models: dict[str, str]) -> Iterator[Server]:
    with Server(models["Llama"], "--device", "cuda", "--num-blocks", "1000") as running:
        yield running.ready(200)
        running.terminate()
        assert running.wait(30) == 0


def test_a_stream_survives_a_killed_worker(server: Server) -> None:
    """Every token comes once. Those before the kill are the undisturbed stream's; after it, the prompt is longer, and rounding another."""
    body: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0.9, "seed": 5, "ignore_eos": True}
    undisturbed = server.post("/v1/completions", body)["choices"][0]["text"]
    text, before, completion_tokens = "", "", 0
    for number, event in enumerate(server.events("/v1/completions", body | {"stream_options": {"include_usage": True}}, 120)):
        text += "".join(choice["text"] for choice in event["choices"])
        if number == 20:
            before = text
            os.kill(server.children()["quire-worke-0"], 9)
        if event.get("usage"):
            completion_tokens = event["usage"]["completion_tokens"]
    assert before
    assert text.startswith(before)
    assert undisturbed.startswith(before)
    assert completion_tokens == 400
    eventually(lambda: len(server.children()) == 3, 60)


def test_graphs_are_recorded_once_it_is_ready(server: Server) -> None:
    eventually(lambda: "decode graphs recorded" in server.output, 120)
    assert "without graphs" not in server.output
