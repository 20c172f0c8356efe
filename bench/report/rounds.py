"""Runs the engines in turns: each round starts every engine once, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import child, machine
from bench.report import limits
from bench.report.engines import Engine
from bench.report.runner import Job
from bench.report.workloads import Sizes
from quire.benchmarks import report, workload
from quire.benchmarks.client import LoadClient
from quire.benchmarks.workload import BenchRequest

ROOT = Path(__file__).resolve().parents[2]
MODEL_NAME = "m"
START_SECONDS = 600.0
POLL_SECONDS = 0.05
# A server rests when all its processes use less than so many cores for so many seconds.
REST_CORES, REST_SECONDS = 0.1, 2.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured. works: of a, b, c, e (offline), d, he (e over HTTP) and tiny."""

    out: Path
    tiny: Path
    sizes: Sizes
    works: tuple[str, ...]
    threads: int
    seconds: float  # that one engine may take in one go

    @property
    def records(self) -> Path:
        return self.out / "records.jsonl"

    def log(self, engine: Engine) -> Path:
        return self.out / f"{engine.name.replace(' ', '-').replace('/', '-')}.log"


def run(plan: Plan, engines: list[Engine], rounds: int, dtype: str) -> None:
    """Appends a record for every engine, work and round to the plan's file, after the rounds that are there; failures are records too."""
    first = 0
    if plan.records.is_file():
        first = 1 + max(int(json.loads(line)["round"]) for line in plan.records.read_text().splitlines())
    for engine in engines:
        if engine.compiles_beside:
            _compile(plan, engine)
    for number in range(first, first + rounds):
        print(f"round {number + 1} of {first + rounds}", flush=True)
        with machine.Span() as span:
            found = limits.measure(plan.threads, dtype)
        _keep(plan, {"engine": "machine", "work": "limits", "round": number, **asdict(found), "other_cores": span.other_cores})
        # Every other round runs backwards, so that nobody always comes first.
        for engine in engines if number % 2 == 0 else engines[::-1]:
            _one(plan, engine, number)


def _compile(plan: Plan, engine: Engine) -> None:
    """Let the engine compile what it keeps for later starts, so that no round has it beside its work. A failure shows in the round."""
    print(f"  {engine.name}: kernels", flush=True)
    models: list[tuple[str, tuple[str, ...]]] = [(engine.model, ())] if set(plan.works) - {"tiny"} else []
    if "tiny" in plan.works and engine.tiny_flags is not None:
        models.append((str(plan.tiny), engine.tiny_flags))
    for model, flags in models:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError), _server(plan, engine, model, flags) as (_, pid, _):
            deadline, used = time.monotonic() + START_SECONDS, float("inf")
            while used > REST_CORES * REST_SECONDS and time.monotonic() < deadline:
                before = _cpu_seconds(pid)
                time.sleep(REST_SECONDS)
                used = _cpu_seconds(pid) - before


def _cpu_seconds(root: int) -> float:
    return sum(machine.cpu_seconds(pid) for pid in machine.tree(root))


def _one(plan: Plan, engine: Engine, number: int) -> None:
    print(f"  {engine.name}", flush=True)
    offline = [work for work in plan.works if work in engine.works]
    # Without a prefix cache first: with one, a work's second round would find the first one's keys in some engines.
    for works in ([work for work in offline if work != "e"], [work for work in offline if work == "e"]):
        if works and engine.runner:
            _offline(plan, engine, works, number)
    if engine.server and {"d", "he"} & set(plan.works):
        _online(plan, engine, engine.model, number, [work for work in ("d", "he") if work in plan.works])
    if engine.server and engine.tiny_flags is not None and "tiny" in plan.works:
        _online(plan, engine, str(plan.tiny), number, ["tiny"])


def _offline(plan: Plan, engine: Engine, works: list[str], number: int) -> None:
    job = Job(engine.name, engine.model, str(plan.out / "workloads"), works, plan.threads, str(plan.records), number, engine.settings)
    file = plan.out / "job.json"
    file.write_text(json.dumps(asdict(job)))
    command = [engine.python, "-m", f"bench.report.{engine.runner}", str(file)]
    with plan.log(engine).open("ab") as log:
        # A group of its own: what an engine leaves behind is ended with it.
        process = child.start(command, signal.SIGKILL, cwd=ROOT, env=_environment(engine), stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | str = process.wait(plan.seconds)
        except subprocess.TimeoutExpired:
            code = f"took more than {plan.seconds:.0f} s"
        finally:
            _end(process)
    if code:
        _failed(plan, engine, "+".join(works), number, f"the runner ended with {code}; see {plan.log(engine).name}")


def _online(plan: Plan, engine: Engine, model: str, number: int, works: list[str]) -> None:
    try:
        is_tiny = works == ["tiny"]
        with _server(plan, engine, model, engine.tiny_flags or () if is_tiny else ()) as (url, pid, ready_s):
            memory = machine.memory_mib(machine.tree(pid))
            which = "tiny_start" if is_tiny else "server_start"
            _keep(plan, {"engine": engine.name, "work": which, "round": number, "ready_s": ready_s, "memory_mib": memory})
            for work in works:
                for record in _load(plan, work, url, pid, number):
                    _keep(plan, {"engine": engine.name, "round": number, **record})
    except (OSError, RuntimeError, TimeoutError) as error:
        _failed(plan, engine, "+".join(works), number, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _server(plan: Plan, engine: Engine, model: str, flags: tuple[str, ...]) -> Iterator[tuple[str, int, float]]:
    """A started server: its URL, process id, and the seconds until it answered /v1/models with 200."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [word.format(model=model, port=port, name=MODEL_NAME) for word in engine.server] + list(flags)
    url, began = f"http://127.0.0.1:{port}", time.perf_counter()
    with plan.log(engine).open("ab") as log:
        process = child.start(command, cwd=ROOT, env=_environment(engine), stdout=log, stderr=log, start_new_session=True)
        try:
            while not _answers(url + "/v1/models"):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with {process.returncode}; see {plan.log(engine).name}")
                if time.perf_counter() - began > START_SECONDS:
                    raise TimeoutError("the server did not become ready")
                time.sleep(POLL_SECONDS)
            yield url, process.pid, time.perf_counter() - began
        finally:
            _end(process)


def _load(plan: Plan, work: str, url: str, pid: int, number: int) -> Iterator[Record]:
    """The works over HTTP; every level has requests of its own, so that no prefix cache answers."""
    file = {"he": "e"}.get(work, work)
    requests = workload.from_file(str(plan.out / "workloads" / f"{file}.json")).requests
    if work == "he":
        yield {"work": "he_cold", **_closed(url, pid, requests[:1], 1)}
        yield {"work": "he_warm", **_closed(url, pid, requests[1:], 32)}
        return
    asyncio.run(_timings(url, [BenchRequest(requests[-1].prompt[:-1], 4)] * 2, 1))
    at = 0
    for level, count in plan.sizes.tiny_levels if work == "tiny" else plan.sizes.levels:
        yield {"work": f"{work}@{level}", **_closed(url, pid, requests[at : at + count], level)}
        at += count


def _closed(url: str, pid: int, requests: list[BenchRequest], concurrency: int) -> Record:
    import uvloop

    with machine.Span(pid) as span:
        timings, wall_s = uvloop.run(_timings(url, requests, concurrency))
    summary = report.summarize(timings, wall_s)
    if summary["failed"]:
        raise RuntimeError(f"{summary['failed']} of {len(requests)} requests failed: {summary['first_error']}")
    return {
        "output_tokens_per_s": summary["output_tokens_per_s"],
        "ttft_ms": summary["ttft_ms"]["p50"],
        "ttft_p99_ms": summary["ttft_ms"]["p99"],
        "inter_token_ms": summary["inter_token_ms"]["p50"],
        "inter_token_p99_ms": summary["inter_token_ms"]["p99"],
        "wall_s": wall_s,
        "memory_mib": machine.memory_mib(machine.tree(pid)),
        "other_cores": span.other_cores,
    }


async def _timings(url: str, requests: list[BenchRequest], concurrency: int) -> tuple[list[report.RequestTiming], float]:
    async with LoadClient(url, MODEL_NAME, {}) as client:
        return await client.closed_loop(requests, concurrency)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and its group, gently first."""
    for number, seconds in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(engine: Engine) -> dict[str, str]:
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | engine.environment


def _failed(plan: Plan, engine: Engine, work: str, number: int, why: str) -> None:
    print(f"    {work}: {why}", flush=True)
    _keep(plan, {"engine": engine.name, "work": work, "round": number, "error": why})


def _keep(plan: Plan, record: Record) -> None:
    with plan.records.open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}) + "\n")
