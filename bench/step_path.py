"""One decode step end to end, without a model: where the microseconds go between a token's sampling and its client.

    python -m bench.step_path [--rows 1,64,256,1024] [--steps 100] [--pace-ms 20] [--json]

Real scheduler and frontend processes around a worker that samples at once, a step each `pace` milliseconds, all rows streaming over HTTP.
Medians over the steps, in microseconds; the last two lines are over tokens. A send returns after its reader has woken where that had a
core to itself: then the stage after it is negative. What lies between two processes contains the other's wake-up,
so a busy machine shows there first. uvloop sends at once what a socket takes: most of the detokenizing stage is the kernel's send, once per
stream. bench.step and bench.frontend measure scheduler and frontend without it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from typing import Any

import numpy as np

from bench import engine_alone, step_stamps
from bench.instant_worker import InstantWorker
from tests.api.server import ApiServer

# What lies between a stamp and the one before it; the first one's predecessor is the worker's "sampled". The doorbell's is "applied":
# while the worker has a step in hand, the tokens go first, and their sending is part of it.
STAGES = (
    "result: worker to scheduler", "apply", "emission: encode and send", "tokens: scheduler to frontend", "detokenize, frames, send",
    "what send left over",
)  # fmt: skip
DOORBELL = "applied to the next doorbell"
LINES = (*STAGES, DOORBELL)
WARM_UP = 10


def measure(rows: int, steps: int, pace: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "stamps")
        stamps = step_stamps.create(path)
        os.environ[step_stamps.VARIABLE], os.environ["TEST_PRELUDE"] = path, "bench.step_stamps"
        stages: dict[str, float] = {}
        try:
            result = engine_alone.measure(rows, 1, steps, 1, pace, lambda server: stages.update(_stages(server, stamps)))
        finally:
            del os.environ[step_stamps.VARIABLE], os.environ["TEST_PRELUDE"]
    return {"rows": rows, "stages_us": stages, "sampled_to_client_ms": result["sampled_to_client_ms"], "other_cores": result["other_cores"]}


def _stages(server: ApiServer, stamps: Any) -> dict[str, float]:
    """Medians over the steps that have all stamps."""
    worker = server.engine.worker
    assert isinstance(worker, InstantWorker)
    times = np.vstack([worker.sampled[None, : worker.steps], stamps[:, : worker.steps]])
    whole = (times > 0).all(axis=0)
    whole[:WARM_UP] = False
    times = times[:, whole]
    if not times.shape[1]:
        raise SystemExit("no step has all its stamps; take more steps")
    way, rung = times[: len(STAGES) + 1], times[-1]
    gaps = [*np.diff(way, axis=0), rung - way[1 + step_stamps.STAMPS.index("applied")]]
    return {name: round(float(np.median(gap)) / 1e3, 1) for name, gap in zip(LINES, gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,64,256,1024")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    results = [measure(rows, arguments.steps, arguments.pace_ms / 1e3) for rows in map(int, arguments.rows.split(","))]
    print(f"{'rows':36}" + "".join(f"{result['rows']:>10}" for result in results))
    for stage in LINES:
        print(f"{stage:36}" + "".join(f"{result['stages_us'][stage]:10.1f}" for result in results))
    for percent in ("p50", "p99"):
        line = "".join(f"{result['sampled_to_client_ms'][percent] * 1e3:10.1f}" for result in results)
        print(f"{'sampled to client, ' + percent:36}{line}")
    if arguments.json:
        print(json.dumps({"bench": "step_path", "results": results}))


if __name__ == "__main__":
    main()
