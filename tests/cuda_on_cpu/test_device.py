"""The CUDA device's whole path, from plan columns to result columns, with its kernels emulated: against the CPU device and the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gpu_workers.cuda.runner import CUDARunner
from gpu_workers.device.cuda import CUDADevice
from tests import oracle
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.sync_machine import SyncMachine
from tests.gpu_workers.player import Player, Row

VOCAB = 512
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2, "dtype": "bfloat16"}
MODELS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 40, "head_dim": 32}),
}
# How much less likely than the best token a chosen one may be under the oracle, which rounds to bf16 at other places.
NEAR = 0.25


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    class Made(dict[str, str]):
        def __missing__(self, name: str) -> str:
            family, changes = MODELS[name]
            self[name] = oracle.make_model(tmp_path_factory.mktemp(name), family, **{**SHAPE, **changes})
            return self[name]

    return Made()


@pytest.fixture(autouse=True)
def emulation() -> Iterator[None]:
    with emulated(seed=5):
        yield


def player_on(machine: SyncMachine, path: str, **flags: Any) -> Player:
    return Player(path, opened=lambda config: CUDADevice(0, config, machine), **flags)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def check_greedy(path: str, row: Row) -> None:
    """Every output token is the oracle's best one after what came before, or so near that rounding decides."""
    with torch.inference_mode():
        logits = oracle.load(path)(torch.tensor([row.tokens])).logits[0].float()
    before = logits[row.num_prompt - 1 : -1]
    chosen = before.gather(1, torch.tensor(row.output)[:, None])[:, 0]
    assert (before.amax(-1) - chosen).max() <= NEAR


@pytest.mark.parametrize("name", MODELS)
def test_chunks_decodes_and_mixed_steps(name: str, checkpoints: dict[str, str]) -> None:
    machine = SyncMachine()
    player = player_on(machine, checkpoints[name])
    rows = [player.add(3, prompt(70)), player.add(0, prompt(1, 1)), player.add(6, prompt(33, 2))]
    player.step([(rows[0], 37), (rows[1], 1)])
    player.step([(rows[1], 1), (rows[0], 33), (rows[2], 20)])
    player.step([(rows[1], 1), (rows[0], 1), (rows[2], 13)])
    player.run(rows, 6)
    for row in rows:
        check_greedy(checkpoints[name], row)
    runner = player.runner
    assert isinstance(runner, CUDARunner)
    assert sum(graph.replayed for graph in machine.graphs) >= 2
