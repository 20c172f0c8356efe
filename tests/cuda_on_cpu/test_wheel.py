"""The wheel: compiled kernels travel in it, and what is installed from it needs no compiler. `make wheel` does this for all of them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kernels_cuda.build import nvrtc
from tests.test_house import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
# Run on what the wheel holds: no compiler, no source tree.
FIND = """
import sys
from pathlib import Path
from kernels_cuda.build import cache, nvrtc
nvrtc.available = lambda: False
assert Path(cache.__file__).is_relative_to(sys.argv[1]), cache.__file__
print(cache.find_or_compile("rows.cu", (), ("90a", "90")).name)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, with rows.cu compiled for one architecture, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in names:
        if name and not name.startswith(("tests/", "bench/")) and (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    run(folder / "tree", "-m", "kernels_cuda.build", "--only", "rows", "--arch", "90")
    run(folder / "tree", "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(folder), ".")
    (wheel,) = folder.glob("quire-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not nvrtc.available(), reason=f"NVRTC is not installed: {nvrtc.HOW_TO_INSTALL}")
def test_cubins_travel_in_the_wheel(unpacked: Path) -> None:
    shipped = unpacked / "kernels_cuda" / "_cubin"
    assert {path.suffix for path in shipped.iterdir()} == {".cubin", ".json", ".txt"}
    found = run(unpacked, "-c", FIND, str(unpacked)).strip()
    assert (shipped / found).is_file() and found.startswith("rows-sm_90-")


@pytest.mark.skipif(not nvrtc.available(), reason=f"NVRTC is not installed: {nvrtc.HOW_TO_INSTALL}")
def test_so_do_the_sources_for_gpus_that_no_cubin_is_for(unpacked: Path) -> None:
    sources = {path.name for path in (ROOT / "kernels_cuda" / "src").iterdir()}
    assert {path.name for path in (unpacked / "kernels_cuda" / "src").iterdir()} == sources
    assert not (unpacked / "tests").exists() and not (unpacked / "bench").exists()


@pytest.mark.skipif(not nvrtc.available(), reason=f"NVRTC is not installed: {nvrtc.HOW_TO_INSTALL}")
def test_every_file_of_the_packages_travels(unpacked: Path) -> None:
    tree = unpacked.parent / "tree"
    files = {path for package in PACKAGES for path in (tree / package).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert [path for path in files if not (unpacked / path.relative_to(tree)).is_file()] == []
    for name in ("quire", "frontend", "ipc"):  # what `import quire` shows to a type checker
        assert (unpacked / name / "py.typed").is_file()
    (licences,) = unpacked.glob("quire-*.dist-info/licenses")
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "NOTICE"}
