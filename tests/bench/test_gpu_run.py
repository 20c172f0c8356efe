"""The GPU run on a machine without a GPU: each part executes, faults are told, limits hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import kernels, machine, report, steps
from bench.gpu.__main__ import STEPS, Step
from bench.gpu.case import Case
from bench.gpu.part import Part
from tests.cuda_on_cpu.emulator import missing_compiler
from tests.processes.server import alive, eventually

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {  # part, line, figure: something that a part which does nothing would not have
    "machine": ("packages", "torch"),
    "ceilings": ("gemm 64", "flop_per_s"),
    "attention_cases": ("decode 1 x 1k", "us"),
    "small_cases": ("logprobs 64 x 128k", "gb_s"),
    "launches": ("graph of 4, torch add", "us_per_kernel"),
    "steps": ("steps 2 x 32, profiled", "busy_ms"),
    "engine": ("offline 4 ShareGPT-like", "out_tok_s"),
    "transformers_peer": ("offline 3 ShareGPT-like", "out_tok_s"),
    "gpu_tests": ("pytest -m gpu", "exit_status"),
}
EMULATED = {"attention_cases", "small_cases", "launches", "steps"}


@pytest.mark.parametrize("name", FIGURES)
def test_each_part_runs_without_a_gpu(name: str, tmp_path: Path) -> None:
    if name in EMULATED and missing_compiler():
        pytest.skip(str(missing_compiler()))
    command = ["bash", "bench/gpu/run_all.sh", "--dry-run", "--parts", name, "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (written,) = tmp_path.glob("*-dry-run.json")
    part = json.loads(written.read_text())["parts"][name]
    line, figure = FIGURES[name]
    assert part["status"] == "ok" and part["wrong"] == [] and part["results"][line][figure] is not None
    assert f"{name:20s} ok" in done.stdout


def test_every_part_is_tried() -> None:
    assert {step.name for step in STEPS} == set(FIGURES)
    assert max(step.seconds for step in STEPS) < gpu.TOTAL_SECONDS <= 540


def options(tmp_path: Path, *words: str) -> Any:
    return gpu._parser().parse_args(["--dry-run", "--out", str(tmp_path), *words])


def fake_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A part `fake` of the package bench.gpu, in a tree of its own."""
    package = tmp_path / "tree" / "bench" / "gpu"
    package.mkdir(parents=True)
    for module in ("__init__.py", "part.py"):
        (package / module).write_text((ROOT / "bench" / "gpu" / module).read_text())
    (package.parent / "__init__.py").touch()
    (package / "fake.py").write_text(
        f"import os, subprocess, sys, time\nfrom bench.gpu.part import run\n\n\ndef main(part):\n{body}\n\n\nrun(main)\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "tree")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tree"))


def test_a_part_that_hangs_is_cut_short_with_what_it_found_and_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part.record("before", pid=child.pid)
    time.sleep(600)"""
    fake_part(tmp_path, monkeypatch, body)
    found = gpu._run(Step("fake", 5), 5, options(tmp_path), {}, tmp_path)
    assert found["status"] == "cut short"
    eventually(lambda: not alive(found["results"]["before"]["pid"]))


@pytest.mark.parametrize(
    "body,status,said",
    [
        ("    part.record('x', a=1.0)", "ok", None),
        ("    part.fault('numbers differ')", "wrong", "numbers differ"),
        ("    part.record('x', a=1.0)\n    raise ValueError('broken')", "failed", "ValueError: broken"),
        ("    part.skip('all', 'no package')", "skipped", None),
        ("    os.kill(os.getpid(), 9)", "failed", None),
        ("    part.record('x', a=float('nan'))", "ok", None),
    ],
)
def test_how_a_part_ends(body: str, status: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_part(tmp_path, monkeypatch, body)
    found = gpu._run(Step("fake", 60), 60, options(tmp_path), {}, tmp_path)
    assert found["status"] == status
    assert said is None or found["wrong"] == [said]


@pytest.mark.parametrize("status,code", [("ok", 0), ("skipped", 0), ("wrong", 1), ("failed", 1), ("cut short", 1)])
def test_the_exit_status_tells(status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"status": status, "seconds": 1.0, "results": {}, "wrong": [], "skipped": {}}
    monkeypatch.setattr(gpu, "_run", lambda *_: part)
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == code


def test_parts_that_all_hang_end_within_nine_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its whole limit and must be killed; the limits together are more than the total."""
    clock, part = [0.0], {"status": "cut short", "seconds": 1.0, "results": {}, "wrong": [], "skipped": {}}

    def hang(step: Step, seconds: float, *_: object) -> dict[str, Any]:
        clock[0] += 0 if seconds < 5 else seconds + gpu.GRACE_SECONDS
        return part

    monkeypatch.setattr(gpu, "_run", hang)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0], strftime=time.strftime, gmtime=time.gmtime))
    assert sum(step.seconds for step in STEPS) > gpu.TOTAL_SECONDS
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    assert 500 < clock[0] <= 540


def test_no_time_left_is_said(tmp_path: Path) -> None:
    assert gpu._run(Step("machine", 30), 1.0, options(tmp_path), {}, tmp_path)["status"] == "cut short"


def test_a_gpu_is_described_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that only a machine with a GPU prints, with torch's and nvidia-smi's answers given."""
    about = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 << 30, 79 << 30))
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    answer = SimpleNamespace(stdout="NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB, 345 MHz, 1980 MHz, 2619 MHz, 30, 70.10 W, 5\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answer)
    part = Part(tmp_path / "r.json")
    machine.main(part)
    assert part.results["gpu"]["name"] == "NVIDIA H100 80GB HBM3" and part.results["gpu"]["l2_mib"] == 50
    assert part.results["nvidia-smi"]["driver_version"] == "580.159.04"
    assert gpu._gpu({"machine": {"results": part.results}}) == "nvidia-h100-80gb-hbm3"


def case(output: torch.Tensor, write: float | None, expected: float = 1.0) -> partial[Case]:
    def make(inputs: None, name: str) -> Case:
        return Case(
            name, lambda: None if write is None else output.fill_(write), lambda: float((output - expected).abs().max()), 0.01, (output,)
        )  # fmt: skip

    return partial(make, None, "a case")


@pytest.mark.parametrize("write,right", [(1.0, True), (1.1, False), (None, False)], ids=["right", "wrong", "nothing written"])
def test_a_wrong_kernel_is_told(write: float | None, right: bool, tmp_path: Path) -> None:
    part = Part(tmp_path / "r.json", dry=True)
    kernels._check(part, iter([case(torch.ones(3), write)]))
    assert bool(part.wrong) != right
    assert json.loads((tmp_path / "r.json").read_text())["wrong"] == part.wrong


def test_the_floor() -> None:
    """Twice the time that the bytes need is 50 %; the larger of the two floors counts."""
    ceilings = {"bytes_per_s": 1e12, "flop_per_s": 1e14}
    figures = kernels.against_floor(10**9, 10**10, 2e-3, ceilings)
    assert figures["of_limit_%"] == pytest.approx(50) and figures["limit"] == "bytes" and figures["us"] == pytest.approx(2000)
    assert kernels.against_floor(10**9, 10**12, 2e-2, ceilings)["limit"] == "flops"


def test_the_report_says_what_was_kept_missed_and_not_run() -> None:
    results = {"decode 64 x 1k": {"us": 90.0, "of_limit_%": 90.0}, "decode 64 x 4k": {"us": 90.0, "of_limit_%": 50.0}}
    ours, theirs = {"offline 256 ShareGPT-like": {"out_tok_s": 900.0}}, {"offline 256 ShareGPT-like": {"out_tok_s": 300.0}}
    parts = {
        name: {"status": "ok", "seconds": 1.0, "results": lines, "wrong": [], "skipped": {}}
        for name, lines in {"attention_cases": results, "engine": ours, "transformers_peer": theirs}.items()
    }
    text = report.text({"parts": parts, "ceilings": {"bytes_per_s": 3e12, "flop_per_s": 7e14}, "seconds": 3.0}, dry=False)
    assert "kept      attention_cases: decode 64 x 1k" in text and "MISSED    attention_cases: decode 64 x 4k" in text
    assert "not run   engine: decode 1 x 1024" in text and "3.00 x" in text
    assert "50 %: ncu" in text and "--only 'decode 64 x 4k'" in text


def test_busy_time_and_gaps() -> None:
    """Overlapping intervals count once; one within another opens no gap."""
    busy, gaps = steps.busy_and_gaps([(20.0, 30.0, "b"), (0.0, 10.0, "a"), (5.0, 12.0, "copy"), (21.0, 22.0, "a"), (30.5, 31.0, "b")])
    assert busy == pytest.approx(22.5) and gaps == pytest.approx([8.0, 0.5])
    assert steps.by_kernel([(0.0, 1.0, "a"), (0.0, 5.0, "b"), (7.0, 8.0, "a")]) == {"b": (1, 5.0), "a": (2, 2.0)}


def test_a_host_that_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with steps.waits() as waited:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:150.)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert len(waited) == 1 and "test_gpu_run.py" in waited[0] and modes == ["warn", "default"]


def test_ceilings_are_the_best_seen_and_need_both() -> None:
    copies = {"copy 1 MiB": {"bytes_per_s": 1.0}, "copy 9 MiB": {"bytes_per_s": 2.0}, "linear": {"bytes_per_s": 9.0, "flop_per_s": 9.0}}
    assert report.ceilings(copies) == {}
    assert report.ceilings({**copies, "gemm 8": {"flop_per_s": 3.0}}) == {"bytes_per_s": 2.0, "flop_per_s": 3.0}
