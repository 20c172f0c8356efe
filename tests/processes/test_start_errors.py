"""A model that cannot be served: one clear message, exit code 2, in bounded time, nothing left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.processes.server import Server


def broken(source: str, target: Path, how: str) -> None:
    shutil.copytree(source, target)
    config = target / "config.json"
    weights = next(target.glob("*.safetensors"))
    match how:
        case "no config.json":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "weights that are none":
            weights.write_bytes(b"this is no safetensors file, whatever its name says")
        case "unknown architecture":
            config.write_text(
                json.dumps(json.loads(config.read_text()) | {"architectures": ["PerpetuumMobileForCausalLM"], "model_type": "pm"})
            )
        case "wrong shapes":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 128}))
        case "no tokenizer":
            (target / "tokenizer.json").unlink()
        case "a tokenizer of no kind":
            (target / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')


@pytest.mark.parametrize(
    "how, expected",
    [
        ("no config.json", "config.json"),
        ("no weights", "safetensors"),
        ("truncated weights", "safetensors"),
        pytest.param("weights that are none", "safetensors", marks=pytest.mark.slow),
        ("unknown architecture", "PerpetuumMobileForCausalLM"),
        ("wrong shapes", "shape"),
        ("no tokenizer", "tokenizer"),
        ("a tokenizer of no kind", "tokenizer.json"),
    ],
)
def test_a_broken_model_directory(how: str, expected: str, tiny_llama: str, tmp_path: Path, runtime: Path) -> None:
    broken(tiny_llama, tmp_path / "model", how)
    with Server(str(tmp_path / "model"), runtime=runtime) as server:
        assert server.wait(110) == 2, server.output
    complaints = [line for line in server.lines if line.startswith("quire: ")]
    assert len(complaints) == 1 and server.lines[-1] == complaints[0], server.output
    assert expected in complaints[0]
    assert "Traceback" not in server.output
    if how != "no tokenizer":  # the scheduler cannot know whether the frontends find another one
        assert " W " not in server.output
    assert list(runtime.iterdir()) == []
