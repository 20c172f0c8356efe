"""Where a served token's time goes: starts `quire serve`, loads it over HTTP, and reads every process's CPU time.

`python -m bench.serving MODEL [--workload FILE | --input-len 32 --output-len 128] [--concurrency 1,32,128,256] [--repeat 1] [--out FILE]
[-- flags of quire serve]`. For each concurrency it prints client figures (as `quire bench serve`), CPU microseconds per output token of
each process, the client included, and milliseconds per step in plan, apply and worker. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from bench import child, machine
from quire.benchmarks import report, workload
from quire.benchmarks.client import LoadClient
from quire.benchmarks.workload import BenchRequest, Workload

READY = re.compile(r"ready at (http://\S+) after ([\d.]+) s")


class Server:
    """A `quire serve` process on a free port; a context manager. It ends with this process, however that ends."""

    def __init__(self, model: str, flags: list[str]) -> None:
        command = [sys.executable, "-m", "quire", "serve", *([model] if model else []), "--port", "0", *flags]
        self._process = child.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.url, self.startup_s = "", 0.0

    def __enter__(self) -> Server:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := READY.search(line):
                self.url, self.startup_s = found[1], float(found[2])
                return self
            print(line, end="")
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def processes(self) -> dict[str, int]:
        """Process ids by what they are; the supervisor included."""
        return {"supervisor": self._process.pid} | {machine.name_of(pid): pid for pid in machine.children(self._process.pid)}

    def cpu_seconds(self) -> dict[str, float]:
        return {name: machine.cpu_seconds(pid) for name, pid in self.processes().items()}

    def memory_mib(self) -> float:
        """Proportional set size of all processes."""
        return machine.memory_mib(self.processes().values())

    def counters(self) -> dict[str, float]:
        """Engine counters of /metrics that a profile needs."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("quire:engine_stage_seconds_total{"):
                found[line.split('stage="')[1].split('"')[0]] = float(line.rsplit(" ", 1)[1])
            elif line.startswith(("quire:engine_steps_total{", "quire:num_preemptions_total{")):
                found[line.split("{")[0].removeprefix("quire:").removesuffix("_total")] = float(line.rsplit(" ", 1)[1])
        return found


async def load(url: str, requests: list[BenchRequest], concurrency: int) -> tuple[list[report.RequestTiming], float]:
    """Each request's timing and the seconds of all, so many at a time."""
    async with LoadClient(url, "", {}) as probe:
        name, _ = await probe.first_model()
    async with LoadClient(url, name, {}) as client:
        return await client.closed_loop(requests, concurrency)


def measure(server: Server, requests: list[BenchRequest], concurrency: int) -> dict[str, Any]:
    """One run: client figures, CPU per token and stage times per step."""
    before, counted, busy, own = server.cpu_seconds(), server.counters(), machine.busy_seconds(), time.process_time()
    timings, wall_s = uvloop.run(load(server.url, requests, concurrency))
    own = time.process_time() - own
    after, counters = server.cpu_seconds(), server.counters()
    summary = report.summarize(timings, wall_s)
    tokens, used = max(1, summary["output_tokens"]), {name: after[name] - before[name] for name in before if name in after}
    steps = max(1.0, counters["engine_steps"] - counted["engine_steps"])
    return {
        "concurrency": concurrency,
        **summary,
        "cpu_us_per_token": {name: round(seconds / tokens * 1e6, 1) for name, seconds in (used | {"client": own}).items()},
        "ms_per_step": {stage: round((counters[stage] - counted[stage]) / steps * 1e3, 4) for stage in ("plan", "apply", "worker")},
        "wall_ms_per_step": round(wall_s / steps * 1e3, 4),
        "tokens_per_step": round(tokens / steps, 1),
        "memory_mib": round(server.memory_mib()),
        "other_cores": round((machine.busy_seconds() - busy - sum(used.values()) - own) / wall_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory; '' for the bundled one")
    parser.add_argument("--workload", help="JSON file of requests")
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--concurrency", default="1,32,128,256")
    parser.add_argument("--per-lane", type=int, default=3, help="requests per concurrent lane")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", help="JSON file to write")
    flags = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    arguments = parser.parse_args(sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else None)
    runs = []
    with Server(arguments.model, flags) as server:
        seed = 0
        for repeat in range(arguments.repeat):
            for level in map(int, arguments.concurrency.split(",")):
                seed += 1
                work: Workload = (
                    workload.from_file(arguments.workload)
                    if arguments.workload
                    else workload.random_tokens(
                        level * arguments.per_lane, arguments.input_len, arguments.output_len, arguments.vocab, seed
                    )
                )
                if seed == 1:
                    asyncio.run(load(server.url, work.requests[:1] * 2, 1))  # warm up
                runs.append({"repeat": repeat, "workload": work.name, **measure(server, work.requests, level)})
                report.print_table(f"{work.name} at {level}", runs[-1])
        startup_s = server.startup_s
    document = {"startup_s": startup_s, "flags": flags, "runs": runs, "environment": report.environment()}
    document["environment"]["command"] = report.command("python -m bench.serving", sys.argv[1:])
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n")
    else:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
