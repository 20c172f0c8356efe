"""--quantization: the same greedy tokens as the Transformers library with the weights that the rounded ones stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_workers.device.cuda import CUDADevice
from gpu_workers.quantization.rounding import BITS
from ipc.errors import ConfigError
from tests import oracle
from tests.gpu_workers.player import Player

PROMPTS = [list(range(300, 300 + length)) for length in (1, 7, 33, 150)]
OUTPUT = 12


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])  # Qwen2 has biases, and a head tied to the embedding
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return oracle.make_model(tmp_path_factory.mktemp("quantized"), request.param)


@pytest.mark.parametrize("name", BITS)
def test_tokens_are_those_of_the_restored_weights(model: str, name: str, tmp_path: Path) -> None:
    restored = oracle.restored_copy(model, tmp_path, name)
    player = Player(model, quantization=name)
    for compiled in (False, True):
        player.use_compiled(compiled)
        rows = [player.add(row, prompt) for row, prompt in enumerate(PROMPTS)]
        player.run(rows, OUTPUT, chunk=64)
        for row, prompt in zip(rows, PROMPTS, strict=True):
            assert row.output == oracle.greedy(restored, prompt, OUTPUT), (compiled, len(prompt))
            player.free(row)


@pytest.mark.parametrize("name", BITS)
def test_logits_are_close_in_bfloat16(name: str, tmp_path: Path) -> None:
    model = oracle.make_model(tmp_path / "model", dtype="bfloat16", initializer_range=0.1)
    restored = oracle.load(oracle.restored_copy(model, tmp_path / "restored", name))
    player = Player(model, quantization=name)
    player.use_compiled(True)
    row = player.add(0, PROMPTS[2], logprobs=5)
    player.run([row], 1)
    with torch.inference_mode():
        expected = restored(torch.tensor([PROMPTS[2]])).logits[0, -1].float().log_softmax(-1)
    _, _, top_ids, top_logprobs = row.logprobs[0]
    assert (expected[top_ids[:5]] - torch.tensor(top_logprobs[:5])).abs().max() < 0.06
    assert expected.max() - expected.mean() > 1  # else everything would be close


def test_dummy_weights(model: str) -> None:
    player = Player(model, quantization="int4", load_format="dummy")
    row = player.add(0, PROMPTS[1])
    player.run([row], 3)
    assert len(row.output) == 3 and not row.nan


def test_refusals(model: str) -> None:
    with pytest.raises(ConfigError, match=r"--quantization int8: .*float16"):
        Player(model, quantization="int8", dtype="float16")
    with pytest.raises(ConfigError, match="--quantization int8: the CUDA device"):
        CUDADevice.check_quantization(object.__new__(CUDADevice), "int8", torch.bfloat16)
    with pytest.raises(ConfigError, match="--quantization: must be one of none, int8, int4, got 'awq'"):
        Player(model, quantization="awq")
