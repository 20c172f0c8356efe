"""The CUDA device in real worker processes, with its kernels emulated: two steps in flight, results that come late, two ranks over gloo."""

from __future__ import annotations

import pytest
import torch

from ipc.arena import Stat
from ipc.messages import Drain, Drained, Ready, Stop
from tests import oracle
from tests.gpu_workers.test_worker_process import PROMPT, group

# How much less likely than the best token a chosen one may be under the oracle in float32, by kv_cache_dtype.
NEAR = {"auto": 0.1, "fp8": 0.3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = {"hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2, "dtype": "float16"}
    return oracle.make_model(tmp_path_factory.mktemp("emulated"), "Llama", **shape)


@pytest.mark.parametrize(("ranks", "cached"), [(1, "auto"), (2, "fp8")])
def test_serves_plans(ranks: int, cached: str, model: str) -> None:
    with group(model, ranks, "tests.cuda_on_cpu.emulated_worker", num_blocks=32, kv_cache_dtype=cached) as workers:
        ready = workers.start()
        # 2 layers, 2 KV heads shared out, 64 wide, 16 tokens, K and V, of two bytes or one.
        assert ready[0].kv_bytes_per_block == 2 * 2 // ranks * 64 * 16 * 2 * (2 if cached == "auto" else 1)
        output = workers.greedy(PROMPT, 10)
        logits = oracle.logits(model, PROMPT + output, fp8_cache=cached == "fp8")[len(PROMPT) - 1 : -1]
        assert (logits.amax(-1) - logits.gather(1, torch.tensor(output)[:, None])[:, 0]).max() <= NEAR[cached]
        for rank in range(ranks):
            workers.supervisor.send(rank, Drain(0))
        said = []
        while sum(isinstance(message, Drained) for message in said) < ranks:
            said.append(workers.supervisor.get())
        assert sum(isinstance(message, Ready) for message in said) == ranks
        assert workers.arena.status("worker", ranks - 1)[Stat.STEPS] == 10
        assert workers.arena.status("worker", 0)[Stat.STEP_TOKENS] == len(PROMPT) + 9
        for rank in range(ranks):
            workers.supervisor.send(rank, Stop())
        assert [process.wait(timeout=100) for process in workers.processes] == [0] * ranks
