"""Vectors through the real processes equal the Transformers library's last hidden states: alone, in a crowd, in chunks, from the cache."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipc.errors import ConfigError, InvalidRequestError
from quire import LLM, AsyncLLM, SamplingParams
from tests import oracle
from tests.processes.server import eventually

LENGTHS = (1, 2, 15, 16, 17, 40, 100, 300)
FAMILIES = ("Llama", "Qwen3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: oracle.make_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def texts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    stem = [rng.randrange(300, oracle.VOCAB_SIZE) for _ in range(300)]
    return [stem[: length - 1] + [rng.randrange(300, oracle.VOCAB_SIZE)] for length in LENGTHS]


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def close(found: list[float], expected: Any) -> bool:
    return len(found) == len(expected) and bool(np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()))


@pytest.mark.parametrize(("family", "pooling"), [("Llama", "last"), ("Qwen3", "last"), ("Qwen3", "mean")])
def test_vectors(models: dict[str, str], family: str, pooling: str) -> None:
    """Beside requests that generate, whose tokens do not change for it, with prompts cut into chunks of 24 tokens, and again."""
    path, prompts = models[family], texts(3)
    settings: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "block_size": 4, "num_blocks": 400, "pooling": pooling}
    with LLM(path, dtype="float32", **settings) as llm:
        written: list[Any] = []
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        beside = threading.Thread(target=lambda: written.extend(llm.generate(prompts[:5], params, use_tqdm=False)))
        beside.start()
        crowd = llm.embed(prompts, use_tqdm=False, normalize=False)
        beside.join()
        again = llm.embed(prompts, use_tqdm=False, dimensions=10)
        stats = llm.engine_stats()
    for prompt, output, short in zip(prompts, crowd, again, strict=True):
        expected = oracle.vector(path, prompt, pooling)
        assert close(output.outputs.embedding, expected), f"{len(prompt)} tokens"
        assert close(short.outputs.embedding, unit(expected[:10])), f"{len(prompt)} tokens, again"
        assert output.prompt_token_ids == prompt and output.finished
    assert sum(output.num_cached_tokens or 0 for output in again) == (0 if pooling == "mean" else sum((n - 1) // 4 * 4 for n in LENGTHS))
    assert stats.generation_tokens == 5 * 30
    assert [output.outputs[0].token_ids for output in written] == [oracle.greedy(path, prompt, 30) for prompt in prompts[:5]]


def test_two_ranks_and_the_models_own_pooling(models: dict[str, str], tmp_path: Path) -> None:
    for file in Path(models["Llama"]).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}))
    prompts = texts(4)[:4]
    with LLM(str(tmp_path), dtype="float32", tensor_parallel_size=2, max_num_batched_tokens=16, max_num_seqs=4) as llm:
        outputs = llm.embed(prompts, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert close(output.outputs.embedding, unit(oracle.vector(models["Llama"], prompt, "mean")))


def test_killed_processes_cost_no_vector(models: dict[str, str]) -> None:
    """A mean is begun anew by the next worker, and a request known to nobody but its frontend goes to the next scheduler."""
    prompts = [text for seed in range(5, 9) for text in texts(seed)]
    settings: dict[str, Any] = {"max_num_batched_tokens": 8, "max_num_seqs": 8, "pooling": "mean"}
    with LLM(models["Llama"], dtype="float32", **settings) as llm:
        found: list[Any] = []
        for victim in ("worker 0", "scheduler"):
            steps = llm.engine_stats().steps
            running = threading.Thread(target=lambda: found.append(llm.embed(prompts, use_tqdm=False, normalize=False)))
            running.start()
            eventually(lambda steps=steps: llm.engine_stats().steps > steps + 20)
            os.kill(llm._engine.pids[victim], signal.SIGKILL)
            running.join()
    assert len(found) == 2
    for outputs in found:
        for prompt, output in zip(prompts, outputs, strict=True):
            assert close(output.outputs.embedding, oracle.vector(models["Llama"], prompt, "mean"))


def test_python_arguments(models: dict[str, str]) -> None:
    async def live() -> None:
        async with AsyncLLM(models["Llama"], dtype="float32", max_model_len=64, max_num_seqs=4) as llm:
            one, other = await asyncio.gather(llm.embed([300, 301, 302]), llm.embed({"prompt": "some text"}, normalize=False))
            assert close(one.outputs.embedding, unit(oracle.vector(models["Llama"], [300, 301, 302])))
            assert close(other.outputs.embedding, oracle.vector(models["Llama"], other.prompt_token_ids))
            full = await llm.embed(list(range(300, 400)), truncate_prompt_tokens=-1)
            assert full.prompt_token_ids == list(range(336, 400)), "the whole context, and its end"
            for arguments, param in (
                ({"prompt": list(range(300, 365))}, "input"),
                ({"prompt": []}, "input"),
                ({"prompt": [oracle.VOCAB_SIZE]}, "input"),
                ({"prompt": [5], "dimensions": 65}, "dimensions"),
                ({"prompt": [5], "dimensions": 0}, "dimensions"),
                ({"prompt": [5], "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
                ({"prompt": [5], "truncate_prompt_tokens": 65}, "truncate_prompt_tokens"),
            ):
                with pytest.raises(InvalidRequestError) as caught:
                    await llm.embed(**arguments)  # type: ignore[arg-type]
                assert caught.value.param == param, arguments

    asyncio.run(live())


def test_a_pooling_that_we_do_not_have_is_named(models: dict[str, str], tmp_path: Path) -> None:
    for file in Path(models["Llama"]).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(ConfigError, match=r"1_Pooling/config.json asks for pooling_mode_cls_token.*--pooling"):
        LLM(str(tmp_path))
