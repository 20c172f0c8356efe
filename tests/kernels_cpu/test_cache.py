"""The cache of images: what its key covers, what it refuses to use, and who compiles when several want the same."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gpu_workers.device.kernel_sets import COMMAND
from kernels_cpu import build, cache, features, recipe
from kernels_cpu.image import Image
from kernels_cpu.recipe import Kernel

NORM = {"norm": Kernel("ops", "norm", (False, False))}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quire" / "cpu"


def test_the_key_covers_all_that_decides_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(wanted: recipe.Recipe = NORM) -> str:
        recipe._surroundings.cache_clear()
        return recipe.key(wanted)

    monkeypatch.setattr(recipe, "_SOURCES", tmp_path / "sources")
    shutil.copytree(Path(recipe.__file__).parent, tmp_path / "sources")
    keys = [key()]
    assert key() == keys[0]
    for other in (
        {"norm": Kernel("ops", "norm", (False, True))},
        {"add": NORM["norm"]},
        NORM | {"most": Kernel("ops", "argmax", (False,))},
    ):
        keys.append(key(other))
    with open(tmp_path / "sources" / "vectors.py", "a") as file:
        file.write("# another line\n")
    keys.append(key())
    monkeypatch.setattr(features, "identity", lambda: "another CPU")
    keys.append(key())
    monkeypatch.setattr(recipe.metadata, "version", lambda name: "0.99")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    recipe._surroundings.cache_clear()


def test_a_recipe_survives_its_way_to_another_process() -> None:
    assert recipe.from_json(recipe.to_json(NORM)) == NORM


def test_what_was_compiled_is_found_and_a_damaged_file_is_compiled_again(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = recipe.key(NORM)
    assert cache.find(key) is None
    image, compiled = build.find_or_build(NORM)
    assert compiled and cache.find(key) == image
    assert build.find_or_build(NORM) == (image, False)
    (path,) = home.glob("*.image")
    content = path.read_bytes()
    for damaged in (content[:-1], content[:40], b"", content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], content + b"\0"):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert cache.find(key) is None
        assert [record.message for record in caplog.records] == [f"{path} is not used: no image of kernels, or a damaged one"]
    again, compiled = build.find_or_build(NORM)
    assert compiled and again == image and path.read_bytes() == content


def test_a_file_that_others_may_write_is_not_run(home: Path) -> None:
    build.find_or_build(NORM)
    (path,) = home.glob("*.image")
    path.chmod(0o666)
    assert cache.find(recipe.key(NORM)) is None
    path.chmod(0o644)
    assert cache.find(recipe.key(NORM)) is not None


def test_what_nobody_has_used_for_long_goes_when_something_new_comes(home: Path) -> None:
    image, _ = build.find_or_build(NORM)
    long_ago = time.time() - cache.KEPT_SECONDS - 60
    for key in ("used", "unused"):
        with cache.alone(key):
            cache.keep(key, image)
    (home / ".killed.image.x").touch()
    (home / "not ours").touch()
    for path in home.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert cache.find("used") == image
    with cache.alone("new"):
        cache.keep("new", image)
    assert sorted(path.name for path in home.iterdir()) == ["new.image", "new.lock", "not ours", "used.image"]


def test_an_image_of_root_that_cannot_be_touched_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError

    image, _ = build.find_or_build(NORM)
    monkeypatch.setattr(cache.os, "utime", refuse)
    assert cache.find(recipe.key(NORM)) == image


def test_without_a_directory_it_compiles_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    image, compiled = build.find_or_build(NORM)
    assert compiled and isinstance(image, Image) and cache.find(recipe.key(NORM)) is None


def test_of_two_that_want_the_same_one_compiles(home: Path) -> None:
    wanted = {"product": Kernel("linear", "product", (1, True, 2, 2))}
    both = [subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    answers = []
    for process in both:
        assert process.stdin is not None
        process.stdin.write(recipe.to_json(wanted).encode() + b"\n")
        process.stdin.flush()
    for process in both:
        assert process.stdin is not None and process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
        assert len(process.stdout.read(answers[-1]["size"])) == answers[-1]["size"]
        process.stdin.close()
        assert process.wait(100) == 0
        process.stdout.close()
    assert sorted(answer["compiled"] for answer in answers) == [False, True]
    assert len(list(home.glob("*.image"))) == 1


def test_the_compiling_process_ends_with_its_input_whatever_it_does() -> None:
    """In the middle of its work, as when a server is killed."""
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    wanted = {"attention": Kernel("attention", "attention", (64, 2, 2, 16, False))}
    process.stdin.write(recipe.to_json(wanted).encode() + b"\n")
    process.stdin.close()
    assert process.wait(100) == 0


def test_a_failure_is_an_answer_and_the_next_one_is_served() -> None:
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    for wanted in ({"x": Kernel("ops", "nothing")}, NORM):
        process.stdin.write(recipe.to_json(wanted).encode() + b"\n")
    process.stdin.flush()
    assert "has no attribute 'nothing'" in json.loads(process.stdout.readline())["error"]
    answer = json.loads(process.stdout.readline())
    assert set(Image.from_bytes(process.stdout.read(answer["size"])).symbols) == {"norm"}
    process.stdin.close()
    assert process.wait(100) == 0
    process.stdout.close()


def test_nobody_finds_another_package_of_that_name(tmp_path: Path) -> None:
    """The compiling process uses the package that asks, whatever lies in the working directory."""
    (tmp_path / "kernels_cpu.py").write_text("raise SystemExit(9)")
    (tmp_path / "numba.py").write_text("raise SystemExit(9)")
    ended = subprocess.run(COMMAND, cwd=tmp_path, input=recipe.to_json(NORM) + "\n", capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
