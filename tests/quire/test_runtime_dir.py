"""The engine's private directory: private, short, swept after a crash, and nobody else's removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipc.errors import ConfigError
from quire import runtime_dir
from quire.runtime_dir import LOCK_NAME, RuntimeDir


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("b")
    monkeypatch.setattr(runtime_dir, "_bases", lambda: [str(path)])
    return path


def test_it_is_private_and_removed_with_its_contents(base: Path) -> None:
    made = RuntimeDir.create()
    assert Path(made.path).parent == base
    assert os.stat(made.path).st_mode & 0o777 == 0o700
    Path(made.path, "supervisor").touch()
    made.remove()
    made.remove()
    assert list(base.iterdir()) == []


def test_a_dead_engines_directory_is_swept_and_a_living_ones_is_not(base: Path) -> None:
    living = RuntimeDir.create()
    dead = RuntimeDir.create()
    os.close(dead._lock_fd)  # the kernel does this when a process dies
    other = base / "quire-notes"
    other.mkdir()
    (other / "diary").touch()
    third = RuntimeDir.create()
    assert {path.name for path in base.iterdir()} == {"quire-notes", Path(living.path).name, Path(third.path).name}
    assert Path(living.path, LOCK_NAME).exists()
    assert (other / "diary").exists()
    living.remove()
    third.remove()


def test_a_directory_that_another_engine_sweeps_away_is_made_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, starting at the same time, finds the lock file before its owner has locked it."""
    real, swept = runtime_dir._lock, []

    def lock(path: str, create: bool) -> int | None:
        if create and not swept:
            Path(path, LOCK_NAME).touch()
            runtime_dir._sweep(str(base))
            swept.append(path)
        return real(path, create)

    monkeypatch.setattr(runtime_dir, "_lock", lock)
    made = RuntimeDir.create()
    assert not Path(swept[0]).exists() and list(base.iterdir()) == [Path(made.path)]
    made.remove()


def test_systemds_directory_goes_first_and_long_names_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/quire:/run/other")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/" + "x" * 90)
    assert runtime_dir._bases()[0] == "/run/quire"
    assert all(len(base) < 70 for base in runtime_dir._bases())


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_dir, "_bases", lambda: ["/nonexistent"])
    with pytest.raises(ConfigError, match=r"/nonexistent.*XDG_RUNTIME_DIR"):
        RuntimeDir.create()
