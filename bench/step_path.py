"""One decode step end to end: where the microseconds go between a token's sampling and its client.

    python -m bench.step_path [--rows 1,64,256,1024] [--steps 100] [--pace-ms 20] [--rest-ms 0] [--model DIR] [--json]

Real scheduler and frontend processes around a worker that samples at once, a step each `pace` milliseconds, all rows streaming over HTTP;
or, with --model, `quire serve` as it is, whose worker computes on the cores that the others wake on. Medians over the steps, in
microseconds; "middle socket" is when half of a step's tokens are with the kernel. A send returns after its reader has woken where that had
a core to itself: then the stage after it is negative. What lies between two processes contains the other's wake-up, so a busy machine
shows there first, and a virtual machine's idle core, which wakes slowly. uvloop sends at once what a socket takes: most of the detokenizing
stage is the kernel's send, once per stream, and nearly half of a send is waking a client that waits on the same machine: with --rest-ms 4
the client reads each 4 ms instead. bench.step and bench.frontend measure scheduler and frontend without sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import engine_alone, step_stamps
from bench.instant_worker import InstantWorker
from bench.serving import Server, load
from quire.benchmarks import report, workload
from tests.api.server import ApiServer

# What lies between a stamp and the one before it. The doorbell's is "applied": while the worker has a step in hand, the tokens go first,
# and their sending is part of it.
STAGES = (
    "result: worker to scheduler", "apply", "emission: encode and send", "tokens: scheduler to frontend", "detokenize, frames, send",
    "what send left over",
)  # fmt: skip
DOORBELL = "applied to the next doorbell"
MIDDLE = "sampled to the middle socket"
LINES = (*STAGES, DOORBELL, MIDDLE)
WARM_UP = 10
ROOT = Path(__file__).resolve().parent.parent


def measure(rows: int, steps: int, pace: float, rest: float) -> dict[str, Any]:
    """Around a worker that samples at once; pace: seconds from step to step, rest: of the client between two looks at its sockets."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "stamps")
        stamps = step_stamps.create(path)
        os.environ[step_stamps.VARIABLE], os.environ["TEST_PRELUDE"] = path, "bench.step_stamps"

        def sampled(server: ApiServer) -> None:
            worker = server.engine.worker
            assert isinstance(worker, InstantWorker)
            stamps[0, : worker.steps] = worker.sampled[: worker.steps]

        try:
            result = engine_alone.measure(rows, 1, steps, 1, pace, rest, sampled)
        finally:
            del os.environ[step_stamps.VARIABLE], os.environ["TEST_PRELUDE"]
        stages = _stages(stamps, rows)
    client = {f"sampled to client, {name}": result["sampled_to_client_ms"][name] * 1e3 for name in ("p50", "p99")}
    return {"rows": rows, "stages_us": stages | client, "other_cores": result["other_cores"]}


def measure_model(model: str, rows: int, steps: int, flags: list[str]) -> dict[str, Any]:
    """Around a model's own worker: `rows` streams of 32 prompt tokens and `steps` more."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "stamps")
        stamps = step_stamps.create(path)
        Path(directory, "sitecustomize.py").write_text("import bench.step_stamps\n")
        before = os.environ.get("PYTHONPATH")
        os.environ[step_stamps.VARIABLE], os.environ["PYTHONPATH"] = path, os.pathsep.join([directory, str(ROOT)])
        try:
            with Server(model, flags) as server:
                requests = workload.random_tokens(rows, 32, steps, 4096, 1).requests
                for some in (requests[:1], requests):  # the first warms up
                    stamps[:] = 0
                    timings, wall_s = asyncio.run(load(server.url, some, rows))
        finally:
            del os.environ[step_stamps.VARIABLE], os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before
        summary = report.summarize(timings, wall_s)
        return {"rows": rows, "stages_us": _stages(stamps, rows), "output_tokens_per_s": summary["output_tokens_per_s"]}


def _stages(stamps: np.ndarray, rows: int) -> dict[str, float]:
    """Medians over the steps that have all stamps, without those at the begin, in which rows come, and at the end, in which they go."""
    whole = np.flatnonzero((stamps > 0).all(axis=0))
    edge = WARM_UP if rows == 1 else max(WARM_UP, len(whole) // 4)
    times = stamps[:, whole[edge:-edge]]
    if not times.shape[1]:
        raise SystemExit("no step has all its stamps; take more steps")
    at = dict(zip(step_stamps.STAMPS, times))
    way = times[: len(STAGES) + 1]
    middle = (at["tokens read"] + at["frames sent"]) / 2 - at["sampled"]
    gaps = [*np.diff(way, axis=0), at["next rung"] - at["applied"], middle]
    return {name: round(float(np.median(gap)) / 1e3, 1) for name, gap in zip(LINES, gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,64,256,1024")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    parser.add_argument("--rest-ms", type=float, default=0.0, help="between two looks of the client at its sockets; not with --model")
    parser.add_argument("--model", help="model directory, or '' for the bundled one: its worker instead of one that samples at once")
    parser.add_argument("--flags", default="", help="of quire serve, with --model")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    results = []
    for rows in map(int, arguments.rows.split(",")):
        if arguments.model is None:
            results.append(measure(rows, arguments.steps, arguments.pace_ms / 1e3, arguments.rest_ms / 1e3))
        else:
            results.append(measure_model(arguments.model, rows, arguments.steps, arguments.flags.split()))
    print(f"{'rows':36}" + "".join(f"{result['rows']:>10}" for result in results))
    for stage in results[0]["stages_us"]:
        print(f"{stage:36}" + "".join(f"{result['stages_us'][stage]:10.1f}" for result in results))
    if arguments.json:
        print(json.dumps({"bench": "step_path", "results": results}))


if __name__ == "__main__":
    main()
