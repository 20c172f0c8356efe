"""What `import quire` costs and offers, and what it says when a name of ours is taken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import quire
from quire import packages

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", quire.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(quire, name) is not None
    assert name in dir(quire)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LLLM"):
        quire.LLLM  # noqa: B018


def test_the_import_is_light() -> None:
    """Fewer modules than a bound says more than milliseconds on a busy machine; and none of the large ones."""
    code = "import sys; before = set(sys.modules); import quire; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(loaded) < 40, loaded
    assert not {"torch", "aiohttp", "numpy", "msgspec", "zmq", "asyncio"} & set(loaded)


def test_a_foreign_module_of_our_name_is_named(tmp_path: Path) -> None:
    """The script's own directory comes first in sys.path, so a user's ipc.py hides our package."""
    (tmp_path / "ipc.py").write_text("")
    (tmp_path / "program.py").write_text(f"import sys; sys.path.append({str(ROOT)!r}); from quire import LLM")
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=250)
    assert done.returncode != 0
    assert str(tmp_path / "ipc.py") in done.stderr.splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); from quire.cli import main; sys.exit(main(['version']))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 2
    assert str(tmp_path / "ipc.py") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_our_own_packages_pass_the_check() -> None:
    packages.check()
