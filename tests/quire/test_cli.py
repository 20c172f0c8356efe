"""The command line: flags from the settings, one clear line for what is wrong, exit codes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipc import config
from ipc.config import Config
from ipc.errors import ConfigError
from quire import cli, settings_flags
from quire.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def parse(*words: str) -> Config:
    parser = settings_flags.Parser(prog="quire serve", allow_abbrev=False)
    parser.add_argument("positional_model", nargs="?")
    settings_flags.add(parser)
    return settings_flags.collect(parser.parse_args(list(words)))


def test_no_flags_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse() == Config()


def test_flags_of_every_kind() -> None:
    got = parse(
        "--port",
        "0",
        "--no-overlap",
        "--log-requests",
        "--api-key",
        "a",
        "--api-key",
        "b",
        "--shutdown-timeout",
        "1.5",
        "--dtype",
        "float32",
    )
    assert got.server.port == 0
    assert not got.scheduler.overlap
    assert got.log.log_requests
    assert got.server.api_key == ["a", "b"]
    assert got.server.shutdown_timeout == 1.5
    assert got.model.dtype == "float32"


def test_the_model_by_place_or_by_flag() -> None:
    assert parse("org/name").model.model == parse("--model", "org/name").model.model == "org/name"
    with pytest.raises(ConfigError, match="two models"):
        parse("one", "--model", "two")


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "quire.toml"
    file.write_text("[server]\nport = 1\nhost = '::1'\n[cache]\nblock_size = 8\n")
    monkeypatch.setenv("QUIRE_PORT", "2")
    monkeypatch.setenv("QUIRE_BLOCK_SIZE", "4")
    got = parse("--config", str(file), "--port", "3")
    assert (got.server.port, got.cache.block_size, got.server.host) == (3, 4, "::1")


def test_help_shows_every_setting_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in config.fields():
        assert "--" + field.name.replace("_", "-") in text
        assert " ".join(field.description.split()) in text.replace("- ", "-") or field.description.split()[0] in text
    assert "(default: 8000)" in text


def test_help_names_the_unit_of_a_number() -> None:
    parser = settings_flags.Parser(prog="quire serve")
    settings_flags.add(parser)
    units = {action.dest: (action.metavar, action.help or "") for action in parser._actions if action.type is float}
    assert units.pop("target_step_ms")[0] == "MS" and units.pop("gpu_memory_utilization")[0] == "SHARE"
    assert units and all(metavar == "SECONDS" and text.startswith("Seconds ") for metavar, text in units.values())


def test_who_reads_the_output_may_leave() -> None:
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "quire", "version"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port", "eighty"], "eighty"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--scheduling-policy", "lifo"], "priority"),
        (["serve", "--max-num-batched-tokens", "8"], "max_num_seqs"),
        (["serve", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["serve", "/nowhere/at/all", "--port", "0"], "/nowhere/at/all"),
        (["serve", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["chat", "--url", "ftp://x"], "ftp://x"),
        (["server"], "server"),
        ([], "COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], expected: str) -> None:
    done = subprocess.run([sys.executable, "-m", "quire", *words], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if " I supervisor: " not in line]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"quire {__version__}\n"


def test_chat_takes_the_settings_and_its_own_flags() -> None:
    parsed = cli._parser(benchmarks=False).parse_args(["chat", "--url", "http://h", "--system", "s", "--max-tokens", "3", "--api-key", "k"])
    assert isinstance(parsed, argparse.Namespace)
    assert (parsed.url, parsed.system, parsed.max_tokens, parsed.temperature) == ("http://h", "s", 3, None)
    assert settings_flags.given(parsed) == {"api_key": ["k"]}


def test_bench_commands_are_those_of_the_benchmarks() -> None:
    parsed = cli._parser(benchmarks=True).parse_args(["bench", "throughput", "--num-prompts", "3"])
    assert parsed.num_prompts == 3
