"""The files in deploy/: the settings and metrics they speak of exist, and the tools they are for can read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # huggingface_hub needs it, too
from prometheus_client.parser import text_string_to_metric_families

from ipc import config
from tests.api.server import ApiServer

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
SERVICE = (DEPLOY / "systemd" / "quire.service").read_text()
DEFAULT = config.load({}, environ={})
OTHERS_FLAGS = {"--now", "--help"}  # of systemctl, and no setting


def named(path: Path) -> str:
    return path.relative_to(DEPLOY).as_posix()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_settings_it_names_exist(path: Path) -> None:
    text, known = path.read_text(), {field.name for field in config.fields()}
    assert {name.lower() for name in re.findall(r"QUIRE_([A-Z_]+)", text)} <= known
    assert {flag[2:].replace("-", "_") for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - OTHERS_FLAGS} <= known


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_docs_lead_to_it(path: Path) -> None:
    assert any(f"](../deploy/{named(path)})" in page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_the_environment_files_examples_are_settings() -> None:
    lines = (DEPLOY / "systemd" / "quire.env").read_text().splitlines()
    examples = dict(line[1:].split("=", 1) for line in lines if line.startswith("#QUIRE_"))
    assert config.load({}, environ={name: value for name, value in examples.items() if value}) != DEFAULT


def test_the_service_gives_running_requests_their_time() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", SERVICE, re.M)
    assert int(seconds) > DEFAULT.server.shutdown_timeout


@pytest.fixture(params=["plain", "with a GPU"])
def units(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The units, with a program to start that is there."""
    (tmp_path / "quire.service").write_text(SERVICE.replace("/opt/quire/bin/quire", sys.executable))
    shutil.copy(DEPLOY / "systemd" / "quire.socket", tmp_path)
    if request.param != "plain":
        (tmp_path / "quire.service.d").mkdir()
        shutil.copy(DEPLOY / "systemd" / "gpu.conf", tmp_path / "quire.service.d")
    return tmp_path


def analyzed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_units_and_finds_them_safe(units: Path) -> None:
    security = "security", "--offline=yes"
    (units / "other.service").write_text(f"[Service]\nExecStart={sys.executable}\n")
    if analyzed(units, "verify", "other.service").returncode or analyzed(units, *security, "--threshold=100", "other.service").returncode:
        pytest.skip("systemd-analyze is too old, or cannot look at any unit here")
    for arguments in (["verify", "quire.service", "quire.socket"], [*security, "--threshold=25", "quire.service"]):
        done = analyzed(units, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "quire" not in done.stderr  # no complaint that is only a warning


def expressions() -> list[str]:
    """All that is asked of Prometheus: by its alerts, and by Grafana's panels."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "quire.rules.yml").read_text())
    panels = json.loads((DEPLOY / "grafana" / "quire.json").read_text())["panels"]
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


def test_metrics_and_labels_that_are_asked_for_exist(server: ApiServer) -> None:
    page = server.request("GET", "/metrics")[2].decode()
    samples: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    asked = [found for text in expressions() for found in re.findall(r"(\w+:\w+)(?:\{([^}]*)\})?", text)]
    assert len(asked) > 20
    for name, selector in asked:
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', selector))
        assert any(wanted.items() <= labels.items() for labels in samples.get(name, [])), (name, selector)
    labels = {label for labels in samples.values() for each in labels for label in each} | {"instance"}  # Prometheus adds that one
    grouped = {label for text in expressions() for names in re.findall(r"by \(([^)]*)\)", text) for label in names.split(", ")}
    assert grouped <= labels


def test_prometheus_is_told_where_quire_listens_and_which_rules_there_are() -> None:
    settings: Any = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{DEFAULT.server.host}:{DEFAULT.server.port}"]}]
    assert f'up{{job="{job["job_name"]}"}}' in " ".join(expressions())
    assert [Path(file).name for file in settings["rule_files"]] == ["quire.rules.yml"]


def test_nginx_lets_through_what_quire_takes() -> None:
    text = (DEPLOY / "nginx" / "quire.conf").read_text()
    bodies, files = (int(size) * 2**20 for size in re.findall(r"client_max_body_size (\d+)m;", text))
    assert bodies == DEFAULT.server.max_body_bytes
    assert DEFAULT.server.max_file_bytes < files < DEFAULT.server.max_file_bytes + 2**21
    (idle,) = re.findall(r"keepalive_timeout (\d+)s;", text)
    assert int(idle) < DEFAULT.server.keepalive_timeout
    assert f"server {DEFAULT.server.host}:{DEFAULT.server.port};" in text and "proxy_buffering off;" in text
