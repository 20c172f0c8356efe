"""The CUDA device in real worker processes, with its kernels emulated: two steps in flight, results that come late, two ranks over gloo."""

from __future__ import annotations

import copy

import pytest
import torch

from ipc.arena import Stat
from ipc.messages import Drain, Drained, Ready, Stop
from tests import oracle
from tests.gpu_workers.test_worker_process import PROMPT, group

NEAR = 0.1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = {"hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2, "dtype": "float16"}
    return oracle.make_model(tmp_path_factory.mktemp("emulated"), "Llama", **shape)


@pytest.mark.parametrize("ranks", [1, 2])
def test_serves_plans(ranks: int, model: str) -> None:
    with group(model, ranks, "tests.cuda_on_cpu.emulated_worker", num_blocks=32) as workers:
        workers.start()
        output = workers.greedy(PROMPT, 10)
        with torch.inference_mode():
            logits = copy.deepcopy(oracle.load(model)).float()(torch.tensor([PROMPT + output])).logits[0][len(PROMPT) - 1 : -1]
        assert (logits.amax(-1) - logits.gather(1, torch.tensor(output)[:, None])[:, 0]).max() <= NEAR
        assert workers.arena.status("worker", ranks - 1)[Stat.STEPS] == 10
        assert workers.arena.status("worker", 0)[Stat.STEP_TOKENS] == len(PROMPT) + 9
        for rank in range(ranks):
            workers.supervisor.send(rank, Drain(0))
        said = []
        while sum(isinstance(message, Drained) for message in said) < ranks:
            said.append(workers.supervisor.get())
        assert sum(isinstance(message, Ready) for message in said) == ranks
        for rank in range(ranks):
            workers.supervisor.send(rank, Stop())
        assert [process.wait(timeout=20) for process in workers.processes] == [0] * ranks
