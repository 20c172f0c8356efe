"""Sets of kernels in the process that uses them: torch until they come, and for good where they do not."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gpu_workers.device import kernel_sets
from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.layers.cpu_linear import PanelProducts
from gpu_workers.layers.cpu_ops import CPUOps
from kernels_cpu import recipe
from kernels_cpu.recipe import Kernel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_sets, "_COMPILER", kernel_sets._Compiler())  # none is left over from another test
    return tmp_path / "quire" / "cpu"


def normed(ops: CPUOps) -> torch.Tensor:
    torch.manual_seed(0)
    return ops.rms_norm(torch.randn(3, 100), torch.rand(100), 1e-6)


def test_torch_serves_first_the_kernels_then_and_at_once_the_next_time() -> None:
    changes: list[bool] = []
    first, products = CPUOps(torch.float32, 1), PanelProducts({"int8"}, torch.float32, 1)
    first.on_change = lambda: changes.append(first.ready)
    assert first.awaited and not first.ready
    before = normed(first)
    assert first.wait(250) and products.wait(250)
    assert changes == [True] and not first.awaited
    torch.testing.assert_close(normed(first), before)
    second = CPUOps(torch.float32, 1)
    assert second.ready and not second.awaited
    assert torch.equal(normed(second), normed(first))


@pytest.mark.parametrize(
    "code, how",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "by signal 9"),
        ("raise SystemExit(3)", "with exit code 3"),
        ("import sys; sys.stdin.readline(); print('{\"size\": 5, \"compiled\": true}', end='\\n1234', flush=True)", "with exit code 0"),
    ],
    ids=["killed", "it ends", "in the middle of an answer"],
)
def test_torch_stays_when_the_compiling_process_dies(
    code: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = kernel_sets.COMMAND
    monkeypatch.setattr(kernel_sets, "COMMAND", [sys.executable, "-c", code])
    with caplog.at_level(logging.WARNING):
        ops = CPUOps(torch.float32, 1)
        assert not ops.wait(250) and not ops.awaited
    assert [record.message for record in caplog.records] == [
        f"small operations stay with torch: the process that compiles them ended {how}"
    ]
    assert normed(ops).shape == (3, 100)
    # The next one that asks gets a process of its own.
    monkeypatch.setattr(kernel_sets, "COMMAND", command)
    assert CPUOps(torch.float32, 1).wait(250)


def test_torch_stays_when_there_is_no_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernel_sets, "COMMAND", ["/nowhere/python"])
    with caplog.at_level(logging.WARNING):
        assert not CPUOps(torch.float32, 1).wait(250)
    (record,) = caplog.records
    assert record.message.startswith("small operations stay with torch: the process that compiles them does not start")


def test_torch_stays_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """numba is not installed: neither its version nor its modules are found."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    recipe._surroundings.cache_clear()
    monkeypatch.setattr(recipe.metadata, "version", version)
    blind = kernel_sets.COMMAND[-1].replace("from kernels_cpu.build", "sys.modules['numba'] = None; from kernels_cpu.build")
    monkeypatch.setattr(kernel_sets, "COMMAND", [*kernel_sets.COMMAND[:-1], blind])
    with caplog.at_level(logging.WARNING):
        assert not CPUOps(torch.float32, 1).wait(250)
    recipe._surroundings.cache_clear()
    (record,) = caplog.records
    assert record.message.startswith("small operations stay with torch: ModuleNotFoundError: ")


def test_what_cannot_be_compiled_is_said_once_and_holds_up_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        broken = KernelSet("strange things")
        broken.start({"one": Kernel("ops", "one")})
        ops = CPUOps(torch.float32, 1)
        assert not broken.wait(250) and ops.wait(250)
    (record,) = caplog.records
    assert record.message.startswith("strange things stay with torch: AttributeError: ")


def test_a_damaged_file_is_replaced(home: Path) -> None:
    assert CPUOps(torch.float32, 1).wait(250)
    (path,) = home.glob("*.image")
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    again = CPUOps(torch.float32, 1)
    assert not again.ready and again.wait(250)
    assert path.read_bytes() == content


def test_a_directory_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert CPUOps(torch.float32, 1).wait(250)
    assert caplog.records == []
