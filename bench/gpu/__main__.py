"""python -m bench.gpu: the parts one after another, each within its own time limit, and a table of what came of them (README.md)."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.child import start
from bench.gpu import report

ROOT = Path(__file__).resolve().parents[2]
TOTAL_SECONDS = 530  # below ten minutes with the start of the machine's Python and the copying back of results
GRACE_SECONDS = 4


@dataclass(frozen=True)
class Step:
    """A part: its module in bench.gpu, and the most seconds it may take."""

    name: str
    seconds: float


# What matters most comes while there is time; what a part leaves of its limit is the next ones'.
STEPS = (
    Step("machine", 30),
    Step("ceilings", 45),
    Step("attention_cases", 90),
    Step("small_cases", 75),
    Step("launches", 30),
    Step("steps", 75),
    Step("engine", 180),
    Step("transformers_peer", 100),
    Step("gpu_tests", 75),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all that ran was right and nothing was cut short, 1 otherwise."""
    options = _parser().parse_args(arguments)
    folder = _folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    began, found = time.monotonic(), {}
    ceilings: dict[str, float] = {}
    for step in STEPS:
        if step.name not in options.parts:
            continue
        left = options.total - (time.monotonic() - began)
        found[step.name] = _run(step, min(step.seconds, left), options, ceilings, folder)
        if step.name == "ceilings":
            ceilings = report.ceilings(found[step.name]["results"])
    document = {
        "command": " ".join(["bash bench/gpu/run_all.sh", *(arguments if arguments is not None else sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "seconds": round(time.monotonic() - began, 1),
        "ceilings": ceilings,
        "parts": found,
    }
    path = folder / f"{document['date'][:10]}-{'dry-run' if options.dry_run else _gpu(found)}.json"
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(report.text(document, options.dry_run))
    print(f"\n{path.name}: {'in ' + str(folder) if options.out or 'OUT' not in os.environ else 'under $OUT'}")
    return 0 if all(part["status"] in ("ok", "skipped") for part in found.values()) else 1


def _parser() -> argparse.ArgumentParser:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(prog="bash bench/gpu/run_all.sh", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU: tiny sizes, kernels in the emulator; shows that all parts run"
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--only", default="", help="time only cases whose name contains this, and check none")
    parser.add_argument("--total", type=float, default=TOTAL_SECONDS, help="seconds for all parts together (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: $OUT, or bench/results/gpu)")
    return parser


def _folder(options: argparse.Namespace) -> Path:
    if options.out:
        return Path(options.out)
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "bench" / "results" / "gpu"


def _run(step: Step, seconds: float, options: argparse.Namespace, ceilings: dict[str, float], folder: Path) -> dict[str, Any]:
    """What the part left behind, with its status: ok, skipped, wrong, failed, or cut short."""
    print(f"\n== {step.name} (at most {max(0, seconds):.0f} s)", flush=True)
    if seconds < 5:
        return {"status": "cut short", "seconds": 0.0, "results": {}, "wrong": [], "skipped": {"all": "no time was left"}}
    path = folder / f"part-{step.name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"bench.gpu.{step.name}", "--out", str(path), "--ceilings", json.dumps(ceilings)]
    command += ["--dry-run"] * options.dry_run + ["--only", options.only] * bool(options.only)
    began = time.monotonic()
    child = start(command, cwd=ROOT, start_new_session=True)
    try:
        status = {0: "ok", 3: "wrong", 4: "skipped"}.get(child.wait(seconds), "failed")
    except subprocess.TimeoutExpired:
        _end(child)
        status = "cut short"
    left = json.loads(path.read_text()) if path.exists() else {"results": {}, "wrong": ["it left no results"], "skipped": {}}
    path.unlink(missing_ok=True)
    took = round(time.monotonic() - began, 1)
    print(f"== {step.name}: {status} in {took} s", flush=True)
    return {"status": status, "seconds": took, **left}


def _end(child: subprocess.Popen[bytes]) -> None:
    """The part and all that it started."""
    for number, wait in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(child.pid, number)
            child.wait(wait)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _commit() -> str:
    if not shutil.which("git"):
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _gpu(found: dict[str, Any]) -> str:
    name = found.get("machine", {}).get("results", {}).get("gpu", {}).get("name", "no-gpu")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
