"""How much memory a process may take, as its cgroups have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc import memory


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service's cgroup inside two others; nothing is limited."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", str(tmp_path / "own"))
    (tmp_path / "own").write_text("1:name=systemd:/elsewhere\n0::/system.slice/quire.service\n")
    service = tmp_path / "system.slice" / "quire.service"
    service.mkdir(parents=True)
    for folder in (service, service.parent):
        (folder / "memory.max").write_text("max\n")
        (folder / "memory.current").write_text("1000\n")
    return tmp_path


def test_without_limits_it_is_the_machines(cgroups: Path) -> None:
    assert 2**20 < memory.available_memory() <= memory.total_memory()
    (cgroups / "own").unlink()
    assert 2**20 < memory.available_memory() <= memory.total_memory()


@pytest.mark.parametrize("folder", ["system.slice/quire.service", "system.slice"])
def test_the_limit_of_a_service_or_of_its_slice(cgroups: Path, folder: str) -> None:
    (cgroups / folder / "memory.max").write_text("4096\n")
    assert (memory.available_memory(), memory.total_memory()) == (3096, 4096)
    (cgroups / folder / "memory.max").write_text("500\n")
    assert (memory.available_memory(), memory.total_memory()) == (0, 500)


def test_the_limit_of_a_container(cgroups: Path) -> None:
    """Which sees its own cgroup as the outermost."""
    (cgroups / "own").write_text("0::/\n")
    (cgroups / "memory.max").write_text("4096\n")
    (cgroups / "memory.current").write_text("96\n")
    assert memory.available_memory() == 4000
