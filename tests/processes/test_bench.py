"""`quire bench` against a real server and with an engine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes.server import ROOT, Server

SMALL = ["--num-prompts", "6", "--input-len", "12", "--output-len", "5"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--api-key", "sk-test") as running:
        yield running.ready()
        running.terminate()
        assert running.wait() == 0


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quire", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=250, check=False)


def runs_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return found


@pytest.mark.parametrize("load", [["--concurrency", "1,3"], ["--request-rate", "50"]], ids=["closed", "open"])
def test_serve(server: Server, tmp_path: Path, load: list[str]) -> None:
    out = tmp_path / "r.json"
    done = bench("serve", "--url", server.url, "--api-key", "sk-test", "--output-json", str(out), *SMALL, *load)
    assert done.returncode == 0, done.stderr
    runs = runs_of(out)
    assert len(runs) == (2 if "--concurrency" in load else 1)
    for run in runs:
        summary = run["summary"]
        assert (summary["completed"], summary["failed"], summary["output_tokens"], summary["input_tokens"]) == (6, 0, 30, 72)
        assert 0 < summary["ttft_ms"]["p50"] <= summary["e2e_ms"]["p99"]
        assert summary["inter_token_ms"]["p50"] > 0


def test_serve_reports_what_the_server_refuses(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    flags = ["--api-key", "sk-test", "--extra-body", '{"temperature": 9}', "--concurrency", "2", "--output-json", str(out)]
    done = bench("serve", "--url", server.url, *SMALL, *flags)
    assert done.returncode == 1
    (run,) = runs_of(out)
    assert run["summary"]["failed"] == 6 and "temperature" in run["summary"]["first_error"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "--url", "http://127.0.0.1:9"], "no OpenAI-compatible server answers at http://127.0.0.1:9"),
        (["serve", "--concurrency", "none"], "--concurrency"),
        (["serve", "--extra-body", "[]"], "--extra-body"),
        (["throughput", "--set", "max_num_seqs"], "NAME=VALUE"),
        (["throughput", "--set", "max_seqs=3"], "max_seqs"),
        (["latency", "--workload", "none.json"], "none.json"),
        (["throughput", "--repeat", "0"], "--repeat must be at least 1"),
        (["throughput", "--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["serve", "--request-rate", "-1"], "--request-rate must be above 0"),
        (["latency", "--output-json", "no/such/folder.json"], "cannot write no/such/folder.json"),
        (["latency", "--output-json", "pyproject.toml"], "pyproject.toml is there already and holds no runs"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], text: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert text in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["throughput", "latency"])
def test_offline(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "r.json"
    done = bench(kind, *SMALL, "--set", "max_num_seqs=8", "--output-json", str(out))
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(out)
    assert (run["kind"], run["summary"]["completed"], run["summary"]["output_tokens"]) == (kind, 6, 30)
    assert ("ttft_ms" in run["summary"]) == (kind == "latency")
