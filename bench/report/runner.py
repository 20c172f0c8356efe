"""What the offline runners share: the job, the order of work, the stamps. Standard library only, for it runs in the peers' environments.

A runner is started as `python -m bench.report.run_ENGINE JOB.json` by its engine's own interpreter. It loads the model, warms up, does
the works of the job and appends one JSON line for each to the job's `out` file.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import machine


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    out: int


@dataclass(frozen=True)
class Job:
    """engine: the name in the results. works: of a, b, c and e, in order. settings: the engine's own."""

    engine: str
    model: str
    workloads: str
    works: list[str]
    threads: int
    out: str
    round: int
    settings: dict[str, Any]

    def requests(self, work: str) -> list[Request]:
        document = json.loads((Path(self.workloads) / f"{work}.json").read_text())
        return [Request(each["prompt"], each["out"]) for each in document["requests"]]

    @property
    def longest(self) -> int:
        """Tokens of the longest request of all works."""
        return max(len(each.prompt) + each.out for work in self.works for each in self.requests(work))


# Runs requests, all admitted at once; seconds from the call to each token of each request. Where nothing depends on when tokens
# come (stamps false), it may give just as many numbers as tokens.
Run = Callable[[Sequence[Request], bool], list[list[float]]]
WARM_UP = Request(list(range(300, 332)), 4)


def main(start: Callable[[Job], Run]) -> None:
    """start: loads the model and returns how requests are run."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    run = start(job)
    loaded_s = machine.since_start()
    run([WARM_UP], True)
    _tell(job, "start", {"loaded_s": loaded_s, "ready_s": machine.since_start(), "memory_mib": _memory()})
    for work in job.works:
        requests = job.requests(work)
        with machine.Span() as span:
            figures = WORKS[work](run, requests, job.round)
        _tell(job, work, {**figures, "wall_s": span.wall_s, "cpu_s": span.own_s, "other_cores": span.other_cores, "memory_mib": _memory()})


def _throughput(run: Run, requests: list[Request], _round: int) -> dict[str, float]:
    began = time.perf_counter()
    stamps = run(requests, False)
    wall_s = time.perf_counter() - began
    _check(requests, stamps)
    return {"output_tokens_per_s": sum(map(len, stamps)) / wall_s}


def _stream(run: Run, requests: list[Request], round_: int) -> dict[str, float]:
    one = requests[round_ % len(requests)]
    (stamps,) = _check([one], run([one], True))
    gaps = [(after - before) * 1e3 for before, after in pairwise(stamps)]
    return {"ttft_ms": stamps[0] * 1e3, "inter_token_ms": (stamps[-1] - stamps[0]) * 1e3 / len(gaps), "gap_p50_ms": statistics.median(gaps)}


def _shared_prefix(run: Run, requests: list[Request], _round: int) -> dict[str, float]:
    cold, warm = run(requests[:1], True), run(requests[1:2], True)
    began = time.perf_counter()
    rest = run(requests[2:], True)
    rest_s = time.perf_counter() - began
    _check(requests, [*cold, *warm, *rest])
    return {"cold_ttft_ms": cold[0][0] * 1e3, "warm_ttft_ms": warm[0][0] * 1e3, "rest_s": rest_s}


WORKS = {"a": _throughput, "b": _throughput, "c": _stream, "e": _shared_prefix}


def _check(requests: Sequence[Request], stamps: list[list[float]]) -> list[list[float]]:
    """Every request gave exactly the tokens it was to give."""
    counts = [len(each) for each in stamps]
    if counts != [request.out for request in requests]:
        raise SystemExit(f"the engine gave {counts[:4]}... tokens, not {[request.out for request in requests[:4]]}...")
    return stamps


def _memory() -> float:
    return machine.memory_mib(machine.tree(os.getpid()))


def _tell(job: Job, work: str, figures: dict[str, float]) -> None:
    line = {"engine": job.engine, "work": work, "round": job.round, **{name: round(value, 4) for name, value in figures.items()}}
    with open(job.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
