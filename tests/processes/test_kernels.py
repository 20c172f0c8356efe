"""Kernels of a real server: compiled in a process of their own, at hand at the next start, and torch whenever they are not there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from kernels_cpu.build import NICE
from tests import oracle
from tests.processes.server import Server, alive, children_of, eventually

PROMPT = [5, 900, 7, 4000, 12, 13]
BODY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
COMPILERS = re.compile("numba|llvm", re.IGNORECASE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quire" / "cpu"


def tokens(server: Server) -> list[int]:
    return list(server.post("/v1/completions", BODY)["choices"][0]["token_ids"])


def worker(server: Server) -> int:
    return server.children()["quire-worke-0"]


def compiling(server: Server) -> list[int]:
    """The processes that compile kernels."""
    found = []
    for pid in children_of(worker(server)):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if "kernels_cpu.build" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def loaded_compilers(pid: int) -> list[str]:
    """Files of numba's or LLVM's that are mapped."""
    return COMPILERS.findall(Path(f"/proc/{pid}/maps").read_text())


def kernels_at_ready(server: Server) -> bool:
    """Whether all were in use before anybody could send a request."""
    before = server.output.partition("quire is ready")[0]
    return "CPU kernels in use: attention kernels, small operations" in before and "being compiled" not in before


def end(server: Server) -> None:
    server.terminate()
    assert server.wait() == 0


@pytest.mark.timeout(300)
def test_cold_then_warm(tiny_llama: str, cache: Path, runtime: Path) -> None:
    wanted = oracle.greedy(tiny_llama, PROMPT, 40)
    with Server(tiny_llama, runtime=runtime) as server:
        server.ready()
        assert "CPU kernels in use: none; being compiled: attention kernels, small operations" in server.output
        [process] = compiling(server)
        eventually(lambda: bool(loaded_compilers(process)))
        assert Path(f"/proc/{process}/comm").read_text() == "quire-kernels\n" and os.getpriority(os.PRIO_PROCESS, process) >= NICE
        assert tokens(server) == wanted
        server.with_kernels()
        assert tokens(server) == wanted
        eventually(lambda: not compiling(server))
        assert loaded_compilers(worker(server)) == []
        end(server)
    with Server(tiny_llama, runtime=runtime) as server:
        assert kernels_at_ready(server.ready())
        assert compiling(server) == []
        assert tokens(server) == wanted
        assert loaded_compilers(worker(server)) == []
        end(server)
    # One file is damaged: its kernels are compiled anew, the others are there at once.
    attention = max(cache.glob("*.image"), key=lambda path: path.stat().st_size)
    content = attention.read_bytes()
    attention.write_bytes(content[: len(content) // 2])
    with Server(tiny_llama, runtime=runtime) as server:
        server.ready()
        assert f"{attention} is not used" in server.output
        assert "CPU kernels in use: small operations; being compiled: attention kernels" in server.output
        assert tokens(server) == wanted
        server.with_kernels()
        assert tokens(server) == wanted and attention.read_bytes() == content
        end(server)


def test_the_compiling_process_is_killed(tiny_llama: str, runtime: Path) -> None:
    with Server(tiny_llama, runtime=runtime) as server:
        [process] = compiling(server.ready())
        os.kill(process, signal.SIGKILL)
        eventually(lambda: "stay with torch" in server.output)
        server.with_kernels()
        assert tokens(server) == oracle.greedy(tiny_llama, PROMPT, 40)
        warnings = [line for line in server.lines if " W worker-0: " in line]
        assert [line.partition(" W worker-0: ")[2] for line in warnings] == [
            "attention kernels, small operations stay with torch: the process that compiles them ended by signal 9"
        ]
        end(server)


def test_the_server_is_killed_while_they_are_compiled(tiny_llama: str, runtime: Path) -> None:
    with Server(tiny_llama, runtime=runtime) as server:
        [process] = compiling(server.ready())
        server.process.kill()
        eventually(lambda: not alive(process))


@pytest.mark.timeout(300)
def test_two_workers_and_no_place_for_a_cache(tiny_llama: str, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with Server(tiny_llama, "--tensor-parallel-size", "2", runtime=runtime) as server:
        server.ready().with_kernels(workers=2)
        assert tokens(server) == oracle.greedy(tiny_llama, PROMPT, 40)
        assert " W worker-" not in server.output
        end(server)
