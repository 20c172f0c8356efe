"""Rules about the repository as a whole: its files, its packaging and its pages."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ipc import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("quire", "frontend", "scheduler_proc", "gpu_workers", "ipc", "kernels_cpu", "kernels_cuda")

# Put together from pieces, so that this file does not break its own rule. A path of one machine is a command that fails on the next;
# which registry to install from is the business of each machine's pip configuration, since mirrors differ.
MACHINE_PATHS = re.compile("|".join([rf"(?<![\w.~-])/{'work'}/", f"/{'opt'}/(?:wheels|pypi)", f"/{'root'}/\\.pyenv"]))
REGISTRY_HOSTS = re.compile("|".join([r"\bpypi" + r"\.org\b", r"\bpythonhosted" + r"\.org\b", r"\bdownload\.pytorch" + r"\.org\b"]))


@cache
def files() -> tuple[Path, ...]:
    """What is or would be committed: all that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return tuple(sorted(path for name in names if name and (path := ROOT / name).is_file()))


@cache
def texts() -> dict[str, str]:
    """The files that are text, by their path in the repository."""
    found = {}
    for path in files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found[path.relative_to(ROOT).as_posix()] = content.decode("utf-8", "replace")
    return found


def lines_with(pattern: re.Pattern[str], pages: dict[str, str]) -> list[str]:
    numbered = ((name, at, line) for name, text in pages.items() for at, line in enumerate(text.splitlines(), 1))
    return [f"{name}:{at}: {line.strip()[:120]}" for name, at, line in numbered if pattern.search(line)]


def test_no_utils() -> None:
    """A file that is named for nothing collects everything."""
    assert [path for path in files() if path.stem in ("utils", "util") and path.suffix == ".py"] == []


def test_no_paths_of_one_machine() -> None:
    assert lines_with(MACHINE_PATHS, texts()) == []


def test_no_registry_hosts() -> None:
    assert lines_with(REGISTRY_HOSTS, texts()) == []


@pytest.mark.parametrize("line", ["cd /work" + "/main", 'open("/work' + '/x")', "--find-links=/opt" + "/wheels", "at /opt" + "/pypi"])
def test_a_planted_machine_path_is_found(line: str) -> None:
    assert lines_with(MACHINE_PATHS, {"a.md": line})


@pytest.mark.parametrize("line", ["docs/work" + "/plan.md", "~/work" + "/quire", "../work" + "/x", "gpu/work" + "/", "/opt/quire/bin"])
def test_other_paths_are_fine(line: str) -> None:
    assert not lines_with(MACHINE_PATHS, {"a.md": line})


def test_a_planted_registry_host_is_found() -> None:
    assert lines_with(REGISTRY_HOSTS, {"a.md": "--index-url https://pypi" + ".org/simple"})


def test_every_package_says_what_it_is_for() -> None:
    inits = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert inits
    assert [str(path.relative_to(ROOT)) for path in inits if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_every_folder_of_code_is_a_package() -> None:
    """setuptools leaves out a folder without __init__.py: it would work here and be missing from the wheel."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_package_beside_the_known_ones() -> None:
    """Another top-level package would escape both the wheel and the floors."""
    top = {path.relative_to(ROOT).parts[0] for path in files() if path.name == "__init__.py"}
    assert top <= {*PACKAGES, "tests", "bench"}


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_bench_results_parse() -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")  # Python writes and reads NaN; other readers of the results do not

    for path in files():
        if path.is_relative_to(ROOT / "bench" / "results") and path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
            except ValueError as error:
                pytest.fail(f"{path.relative_to(ROOT)}: {error}")


def test_constraints_pin_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["dev"], *extras["transformers"]]]
    wrong = [str(each) for each in wanted if pinned.get(canonicalize_name(each.name)) not in each.specifier]
    assert wrong == []


def test_what_serving_depends_on_is_imported() -> None:
    """Whoever installs quire downloads all of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = "\n".join(text for name, text in texts().items() if name.endswith(".py") and name.split("/")[0] in PACKAGES)
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.M))
    used = {canonicalize_name(name) for module, names in packages_distributions().items() if module in imported for name in names}
    assert [line for line in project["dependencies"] if canonicalize_name(Requirement(line).name) not in used] == []


LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")


def test_links_between_our_pages_lead_somewhere() -> None:
    broken = []
    for name, text in texts().items():
        if name.endswith(".md"):
            broken += [f"{name}: {target}" for target in LINK.findall(text) if not (ROOT / name).parent.joinpath(target).exists()]
    assert broken == []


def test_the_page_on_serving_has_every_flag_and_no_other() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    no_settings = {"--help", "--config", "--url", "--socket", "--unix-socket"}
    settings = {"--" + field.name.replace("_", "-") for field in config.fields()}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - no_settings == settings
