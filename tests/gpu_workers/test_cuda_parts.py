"""The CUDA device's decisions without kernels: graph buckets, memory, what is remembered of it, and every way it cannot be had."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from gpu_workers.collectives import Collectives
from gpu_workers.cuda import memory
from gpu_workers.cuda.graphs import LARGEST, DecodeGraphs, buckets
from gpu_workers.cuda.largest_step import largest_plan
from gpu_workers.cuda.memory import GIB, GRAPH_BYTES, Budget, Key, Measured
from gpu_workers.cuda.waiter import Waiter
from gpu_workers.device import open_device
from gpu_workers.device.base import AttentionShape
from gpu_workers.device.cuda import CUDADevice
from ipc import config as ipc_config
from ipc.arena import Dimensions, PlanHeader, RowFlag
from ipc.config import Config
from ipc.errors import ConfigError
from tests.cuda_on_cpu.sync_machine import KeptWork, SyncEvent, SyncMachine

KEY = Key("m", "torch.bfloat16", 0, 1, "GPU", 1, 2, 3, 4, 5, "auto", False, 6, 7, "dummy", "2.13", "s")


def config(**flags: Any) -> Config:
    return ipc_config.load(flags, environ={})


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100, 256, 512, 4000])
def test_buckets(most: int) -> None:
    sizes = buckets(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(most, LARGEST)
    assert sizes[0] == 1
    for rows in range(1, sizes[-1] + 1):
        padded = min(size for size in sizes if size >= rows)
        assert padded - rows <= max(7, rows // 4)


def test_graphs_are_recorded_on_demand_and_in_spare_time() -> None:
    machine, log = SyncMachine(), []
    graphs = DecodeGraphs(machine, 4, lambda: log.append("prepare"), lambda bucket: log.append(bucket))
    assert graphs.buckets == [1, 2, 4]
    assert graphs.bucket(0) is None
    assert graphs.bucket(5) is None
    assert graphs.bucket(3) is None  # the first time it is not worth it
    assert log == []
    assert graphs.bucket(4) == 4  # the second time it is: prepared and run once, then recorded, not run
    assert log == ["prepare", 4]
    graphs.replay(4)
    assert log == ["prepare", 4, 4]
    assert graphs.bucket(2) is None
    assert graphs.record_next()  # the bucket that was missed comes first
    assert log[3:] == ["prepare", 2]
    assert graphs.record_next()
    assert log[5:] == ["prepare", 1]
    assert not graphs.record_next()
    assert [graphs.bucket(rows) for rows in (1, 2, 3, 4)] == [1, 2, 4, 4]
    assert len(machine.graphs) == 3


def test_without_graphs_steps_are_still_served(caplog: pytest.LogCaptureFixture) -> None:
    """What was recorded before a failure stays in use; nothing is tried a second time."""

    class Refusing(SyncMachine):
        def capture(self, work: Callable[[], None]) -> KeptWork:
            if self.graphs:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            return super().capture(work)

    graphs = DecodeGraphs(Refusing(), 4, lambda: None, lambda bucket: None)
    assert graphs.record_next()
    with caplog.at_level(logging.WARNING):
        graphs.record_next()
    assert "without graphs" in caplog.text and "not permitted" in caplog.text
    assert not graphs.record_next()
    assert [graphs.bucket(rows) for rows in (1, 2, 2, 2, 4, 4)] == [1, None, None, None, None, None]


def test_the_waiter_keeps_order_and_passes_errors_on() -> None:
    """Calls arrive as they were given; a device that failed raises on the loop and not in the thread."""

    class Failing(SyncEvent):
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    calls: list[Any] = []
    waiter = Waiter(calls.append)
    done: list[int] = []
    for number in range(3):
        waiter.when(SyncEvent(), lambda number=number: done.append(number))
    waiter.when(Failing(), lambda: done.append(99))
    waiter.close()
    waiter._thread.join(60)
    for call in calls[:3]:
        call()
    assert done == [0, 1, 2]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        calls[3]()
    assert waiter.waiting_seconds == 0


def test_the_largest_step_is_as_large_as_the_settings_allow() -> None:
    dimensions = Dimensions(rows=3, tokens=100, blocks_per_row=40, block_updates=1, setup_bytes=1, logprobs=1)
    plan = largest_plan(dimensions, 16)
    assert plan.num_new[:3].tolist() == [33, 33, 34]
    assert set(plan.flags[:3].tolist()) == {int(RowFlag.SAMPLE)}
    assert plan.header[PlanHeader.NUM_TOKENS] == plan.header[PlanHeader.NUM_TOKEN_IDS] == 100
    short = largest_plan(Dimensions(rows=3, tokens=100, blocks_per_row=1, block_updates=1, setup_bytes=1, logprobs=1), 16)
    assert short.num_new[:3].tolist() == [16, 16, 16]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quire" / "memory"


def kv_bytes(machine: SyncMachine, key: Key = KEY, graphs: bool = False, utilization: float = 0.75) -> int:
    return Budget(machine, utilization).kv_cache_bytes(key, Collectives(), lambda: None, graphs)


def test_memory_is_measured_once(cache: Path) -> None:
    """1 GiB in all, 768 MiB of it allowed, 256 MiB in use, 100 MiB for the largest step."""
    machine = SyncMachine(free_bytes=768 << 20, step_bytes=100 << 20)
    assert kv_bytes(machine) == (768 - 256 - 100) << 20
    assert kv_bytes(machine) == (768 - 256 - 100) << 20
    assert machine.measured == 1
    assert not [path for path in cache.iterdir() if path.suffix != ".json"]
    kv_bytes(machine, msgspec.structs.replace(KEY, max_num_seqs=9))
    assert machine.measured == 2
    machine = SyncMachine(free_bytes=1 << 30, step_bytes=0)
    assert kv_bytes(machine, msgspec.structs.replace(KEY, rank=1), graphs=True) == (768 << 20) - GRAPH_BYTES


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 1}', b"\xff\x00"])
def test_a_file_that_makes_no_sense_is_measured_again(cache: Path, content: bytes) -> None:
    machine = SyncMachine(step_bytes=5)
    kv_bytes(machine)
    (path,) = cache.iterdir()
    path.write_bytes(content)
    kv_bytes(machine)
    assert machine.measured == 2
    assert memory.read(path, KEY) == Measured(KEY, 5, 0)


def test_a_file_of_other_settings_or_with_impossible_numbers_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    memory.write(path, Measured(msgspec.structs.replace(KEY, torch="2.11"), 5, 0))
    assert memory.read(path, KEY) is None
    memory.write(path, Measured(KEY, -5, 0))
    assert memory.read(path, KEY) is None


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert kv_bytes(SyncMachine()) > 0
    assert "not remembered" in caplog.text


def test_too_little_memory_says_how_much_and_what_to_do(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.75 GiB may be used .*0\.50 GiB are in use.*step takes 0\.29 GiB.*--max-num-seqs"):
        kv_bytes(SyncMachine(free_bytes=512 << 20, step_bytes=300 << 20))
    budget = Budget(SyncMachine(free_bytes=1 << 29), 0.9)
    with pytest.raises(ConfigError, match=r"weights need about 16\.00 GiB.*0\.50 GiB of 1\.00 GiB are free.*--tensor-parallel-size"):
        budget.expect(16 * GIB)
    explained = budget.explain(torch.OutOfMemoryError("CUDA out of memory."))
    assert isinstance(explained, ConfigError)
    assert "--gpu-memory-utilization" in str(explained)
    other = ValueError("x")
    assert budget.explain(other) is other


def test_memory_that_a_killed_worker_gives_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.001)

    class Releasing(SyncMachine):
        def free(self) -> int:
            self.free_bytes = min(self.free_bytes + 200, 900)
            return self.free_bytes

    machine = Releasing(free_bytes=100)
    Budget(machine, 0.9).expect(850)
    with pytest.raises(ConfigError, match="weights need"):
        Budget(Releasing(free_bytes=100), 0.9).expect(901)


SHAPE = AttentionShape(64, 4, 2, 16, torch.bfloat16)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"block_size": 24}, "--block-size 24: on CUDA it must be a multiple of 16"),
        ({"max_logprobs": 33}, "--max-logprobs 33: at most 32"),
    ],
)
def test_settings_the_kernels_cannot_serve(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CUDADevice(0, config(**flags), SyncMachine())


def test_models_the_kernels_cannot_serve() -> None:
    device = CUDADevice(0, config(), SyncMachine())
    with pytest.raises(ConfigError, match=r"heads have 72 dimensions.*32, 64, 80.*--device cpu"):
        device.prepare(AttentionShape(72, 4, 2, 16, torch.bfloat16), 1)
    with pytest.raises(ConfigError, match=r"weights need about 2\.00 GiB"):
        device.prepare(SHAPE, 2 * GIB)
    device.prepare(SHAPE, 1)
    with pytest.raises(ConfigError, match="--dtype float32"):
        device.dtype("float32", torch.bfloat16)
    assert device.dtype("auto", torch.float32) == torch.bfloat16
    assert device.dtype("auto", torch.float16) == torch.float16
    assert device.dtype("float16", torch.float32) == torch.float16


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda() -> None:
    with pytest.raises(ConfigError, match=r"built without CUDA.*--device cpu"):
        open_device("cuda", 0, config())


class FakeCuda:
    """As much of torch.cuda as opening a device asks for."""

    def __init__(self, error: str = "", count: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.error, self.count, self.capability = error, count, capability
        self.stream_set = None

    def init(self) -> None:
        if self.error:
            raise RuntimeError(self.error)

    def device_count(self) -> int:
        return self.count

    def set_device(self, index: int) -> None:
        pass

    def get_device_properties(self, index: int) -> Any:
        major, minor = self.capability
        return SimpleNamespace(
            name="GPU", multi_processor_count=1, shared_memory_per_multiprocessor=1, total_memory=1, major=major, minor=minor
        )

    def Stream(self) -> object:
        return object()

    def set_stream(self, stream: object) -> None:
        self.stream_set = stream


@pytest.mark.parametrize(
    "cuda, flags, message",
    [
        (FakeCuda("The NVIDIA driver on your system is too old (found version 12020).\nMore."), {}, r"too old.*driver 580.*--device cpu"),
        (FakeCuda("Found no NVIDIA driver on your system."), {}, r"Found no NVIDIA driver.*--device cpu"),
        (FakeCuda(count=1), {"tensor_parallel_size": 2}, "--tensor-parallel-size 2: 1 GPU is visible"),
        (FakeCuda(capability=(7, 5)), {}, r"compute capability 7\.5.*--device cpu"),
        (FakeCuda(), {}, r"CuPy, which cannot be imported.*quire\[cuda\]"),
    ],
)
def test_a_gpu_that_cannot_be_used(cuda: FakeCuda, flags: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigError, match=message):
        open_device("cuda", 0, config(**flags))
