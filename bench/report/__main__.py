"""quire and its peers on the same work, in turns on this machine: report.md, report.json and report.svg in OUT_DIR.

    python -m bench.report OUT_DIR [--quick] [--rounds 3] [--works a,b,c,d,e,he,tiny] [--vllm PYTHON] [--openvino PYTHON ...] ...

Each peer lives in its own environment and is named by its interpreter; docs/benchmarks.md says how to set them up. Transformers is taken
from this one. Models with random weights are made under OUT_DIR/models unless --model names one. Records are kept as they come in
OUT_DIR/records.jsonl, and --render makes the report from them again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from bench import models
from bench.report import engines, limits, render, rounds, summary, workloads
from ipc.errors import ConfigError
from quire.benchmarks import report

WORKS = ("a", "b", "c", "e", "d", "he", "tiny")


def main(words: list[str] | None = None) -> int:
    arguments = _parse(words)
    try:
        return _report(arguments)
    except ConfigError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tiny model and short requests: whether everything runs, no figures")
    parser.add_argument("--rounds", type=int, default=0, help="default 3; 1 with --quick")
    parser.add_argument("--works", default=",".join(WORKS), help="default %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of each engine (default: all cores)")
    parser.add_argument("--model", type=Path, help="model directory for a to e; default: bench.models' half, made if it is not there")
    parser.add_argument("--engine-seconds", type=float, default=900.0, help="most that one engine may take in one go")
    parser.add_argument("--append", action="store_true", help="keep OUT's records and add rounds, perhaps of other works or engines")
    parser.add_argument("--render", action="store_true", help="measure nothing; write the report from the records that are there")
    engines.add_flags(parser)
    return parser.parse_args(words)


def _report(arguments: argparse.Namespace) -> int:
    works = tuple(word for word in arguments.works.split(",") if word)
    unknown = sorted(set(works) - set(WORKS))
    if unknown or not works:
        raise ConfigError(f"--works: there is no {', '.join(unknown) or 'work at all'}; there are {', '.join(WORKS)}")
    if arguments.rounds < 0 or arguments.threads < 1:
        raise ConfigError("--rounds and --threads must be positive")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sizes = workloads.QUICK if arguments.quick else workloads.FULL
    model = arguments.model or _made(out, "tiny" if arguments.quick else "half")
    if not (model / "config.json").is_file():
        raise ConfigError(f"--model: {model} is not a model directory")
    tiny = _made(out, "tiny") if "tiny" in works else model
    workloads.write(out / "workloads", sizes, _vocab(model), _vocab(tiny))
    peers = engines.found(arguments, model, arguments.threads)
    shape = limits.Shape.of(model)
    plan = rounds.Plan(out, tiny, sizes, works, arguments.threads, arguments.engine_seconds)
    if not arguments.render:
        if not arguments.append:
            plan.records.unlink(missing_ok=True)
        rounds.run(plan, peers, arguments.rounds or (1 if arguments.quick else 3), shape.dtype)
    if not plan.records.is_file():
        raise ConfigError(f"--render: there is no {plan.records}")
    records = [json.loads(line) for line in plan.records.read_text().splitlines()]
    machine = summary.machine_of(records)
    allowed = {} if machine is None else summary.limits_of(machine, shape, sizes, _lengths(out / "workloads"))
    rows = summary.rows(records, sizes, allowed)
    render.write(out, _about(arguments, peers, model, shape), machine, rows, records)
    print(f"wrote report.md, report.json and report.svg to {out}")
    return 1 if any("error" in record for record in records) else 0


def _made(out: Path, name: str) -> Path:
    directory = out / "models" / name
    if not (directory / "config.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        models.make(name, directory)
    return directory


def _vocab(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def _lengths(directory: Path) -> dict[str, list[tuple[int, int]]]:
    found = {}
    for work in ("a", "b"):
        document = json.loads((directory / f"{work}.json").read_text())
        found[work] = [(len(each["prompt"]), each["out"]) for each in document["requests"]]
    return found


def _about(arguments: argparse.Namespace, peers: list[engines.Engine], model: Path, shape: limits.Shape) -> dict[str, Any]:
    where = report.environment()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{where['cpu']}, {where['cores']} cores, Python {platform.python_version()}",
        "threads": arguments.threads,
        "model": f"{model.name}, {shape.weights / 1e6:.1f} M weights that multiply, {shape.dtype}, {shape.weight_bytes / 1e6:.0f} MB",
        "engines": ", ".join(f"{engine.name} {engine.version}".rstrip() for engine in peers),
        "command": report.command("python -m bench.report", sys.argv[1:]),
    }


if __name__ == "__main__":
    sys.exit(main())
