"""What the CPU device decides: how much memory keys and values get, on how many threads a step runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu_workers import kv_cache
from gpu_workers.device import cpu
from ipc import config as ipc_config
from ipc.errors import ConfigError

MIB = 2**20
NO_PREFIXES = {"enable_prefix_caching": False}


@pytest.fixture
def device() -> Any:
    before = torch.get_num_threads()
    yield cpu.CPUDevice(ipc_config.load({"cpu_threads": 2}, environ={}))
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8: on the CPU .* leave it at auto, or use --device cuda"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3: "),
        ({"attention_prefill": "wgmma"}, "--attention-prefill wgmma: .* leave it at auto, or use --device cuda"),
        ({"batch_invariant": True}, "--batch-invariant: .* leave it out, or use --device cuda"),
    ],
)
def test_settings_that_only_a_gpu_can_serve(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cpu.CPUDevice(ipc_config.load(flags, environ={}))


def test_arms_onednn_gets_float32_weights_alone(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would multiply bfloat16 ones in a scalar loop. Panels of ours come with `prepare`; without them torch has the plain weight."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert device.pack_linear(torch.ones(64, 64)) is not None
    assert device.pack_linear(torch.ones(64, 64, dtype=torch.bfloat16)) is None


def serving(weight_bytes: int, max_model_len: int) -> Any:
    """A model of 6 layers with 4 KV heads of 32 dimensions, float32: 6 KiB per token."""
    spec = SimpleNamespace(num_layers=6, head_dim=32)
    model = SimpleNamespace(spec=spec, heads=SimpleNamespace(num_kv=4), dtype=torch.float32, size=(0, weight_bytes))
    return SimpleNamespace(model=model, info=SimpleNamespace(max_model_len=max_model_len))


def test_kv_memory_follows_the_model(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available_memory", lambda: 2**40)
    assert device.kv_cache_bytes(None, serving(10 * MIB, 2048)) == 256 * MIB
    assert device.kv_cache_bytes(None, serving(800 * MIB, 2048)) == 3200 * MIB
    assert device.kv_cache_bytes(None, serving(8000 * MIB, 2048)) == 4096 * MIB
    assert device.kv_cache_bytes(None, serving(10 * MIB, 32768)) == 4 * 32768 * 6 * 1024
    monkeypatch.setattr(cpu, "available_memory", lambda: 400 * MIB)
    assert device.kv_cache_bytes(None, serving(10 * MIB, 2048)) == 100 * MIB
    assert device.kv_cache_bytes(5, serving(10 * MIB, 2048)) == 5
    monkeypatch.setattr(cpu, "total_memory", lambda: 400 * MIB)
    with pytest.raises(ConfigError, match=r"KV blocks of 0\.4 GiB were asked for, the machine has 0\.4 GiB: lower --kv-cache-memory"):
        device.kv_cache_bytes(401 * MIB, serving(10 * MIB, 2048))


@pytest.mark.parametrize(
    ("flags", "rank", "blocks", "said"),
    [
        ({"num_blocks": 1000}, 0, 1000, ""),
        ({"kv_cache_memory": "48M"}, 0, 512, ""),
        ({"kv_cache_memory": "12M"}, 0, 128, ""),
        ({}, 0, 256 * MIB // (96 * 1024), ""),
        ({"num_blocks": 257, **NO_PREFIXES}, 0, 257, ""),
        ({"num_blocks": 1000, **NO_PREFIXES}, 0, 257, "--num-blocks asks for 1000 KV blocks; 257 are made"),
        ({"num_blocks": 1000, **NO_PREFIXES}, 1, 257, ""),
        ({"kv_cache_memory": "48M", **NO_PREFIXES}, 0, 257, "--kv-cache-memory asks for 512 KV blocks; 257 are made"),
        ({"kv_cache_memory": "12M", **NO_PREFIXES}, 0, 128, ""),
        (NO_PREFIXES, 0, 257, ""),
    ],
)
def test_blocks_that_nobody_could_use_are_not_made(
    device: Any, caplog: pytest.LogCaptureFixture, flags: dict[str, object], rank: int, blocks: int, said: str
) -> None:
    """4 requests of 1024 tokens, in blocks of 16 tokens and 96 KiB, and the spare block; a prefix cache can use any number."""
    asked = serving(10 * MIB, 1024)
    asked.arena, asked.ranks = SimpleNamespace(dimensions=SimpleNamespace(rows=4, blocks_per_row=64)), SimpleNamespace(rank=rank)
    with caplog.at_level("INFO"):
        assert kv_cache.affordable_blocks(ipc_config.load(flags, environ={}), device, 96 * 1024, asked) == blocks
    assert [record.message.split(",")[0] for record in caplog.records] == [said] * bool(said)


def test_a_large_memory_is_not_filled_with_prefixes_unasked(device: Any) -> None:
    asked, most = serving(10 * MIB, 1024), 2**20
    asked.arena, asked.ranks = SimpleNamespace(dimensions=SimpleNamespace(rows=4, blocks_per_row=64)), SimpleNamespace(rank=0)
    assert kv_cache.affordable_blocks(ipc_config.load({}, environ={}), device, 64, asked) == most
    asked.arena.dimensions.rows = 2 * most // 64
    assert kv_cache.affordable_blocks(ipc_config.load({}, environ={}), device, 64, asked) == 2 * most + 1
    assert kv_cache.affordable_blocks(ipc_config.load({"num_blocks": 3 * most}, environ={}), device, 64, asked) == 3 * most


def test_a_step_with_much_to_read_gets_all_threads(device: Any) -> None:
    device.begin_step(32, 2_400_000, 10 * MIB)
    assert torch.get_num_threads() == 1
    device.begin_step(32, 2_400_000, 60 * MIB)
    assert torch.get_num_threads() == 2
