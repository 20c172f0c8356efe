"""The engine without a model: real frontends and scheduler, a worker that samples at once, and thousands of streams over HTTP.

    python -m bench.engine_alone [--streams 256,1024,4096] [--frontends 1,2,4] [--tokens 64] [--pace-ms 0] [--rest-ms 0] [--json]

Prints tokens per second and CPU microseconds per token of each process, how evenly connections fell on the frontends, memory per open
stream and per idle connection, and the time from a token's sampling to its arrival at the client. With --pace-ms 20 the worker takes a
step each 20 ms, so that latency is the engine's and not a queue's. The client shares the machine; with --rest-ms 4 it reads each 4 ms
instead of at once, so that the server's sends need not wake it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import child, machine
from bench.instant_worker import InstantWorker, words
from bench.stream_load import Order
from frontend.tokenizer import Tokenizer
from ipc.arena import Stat
from ipc.config import Config, ParallelConfig, SchedulerConfig, ServerConfig
from tests.api.server import DEMO, ApiServer, api_server, until

ROOT = Path(__file__).resolve().parent.parent


def measure(
    streams: int, frontends: int, tokens: int, rounds: int, pace: float, rest: float = 0.0,
    inspect: Callable[[ApiServer], object] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One configuration; rest: see stream_load.Order; inspect: called with the server after the load, before it ends."""
    config = Config(
        scheduler=SchedulerConfig(max_num_seqs=max(streams, 2), max_num_batched_tokens=max(8192, streams)),
        parallel=ParallelConfig(frontends=frontends),
        server=ServerConfig(max_connections=max(64, streams + 8)),
    )
    tokenizer = Tokenizer.load(str(DEMO))
    cycle = words(tokenizer)
    tokenizer_words = [tokenizer.decode([token]) for token in cycle.tolist()]
    blocks = streams * (2 + (tokens + 8) // config.cache.block_size) + 64
    with (
        tempfile.TemporaryDirectory() as directory,
        api_server(config, frontends, kind=InstantWorker, words=cycle, pace=pace, num_blocks=blocks) as server,
    ):
        order = Order(server.port, streams, tokens, rounds, tokenizer_words, os.path.join(directory, "arrivals.npy"), rest)
        result = {"streams": streams, "frontends": frontends, "pace_ms": pace * 1e3, "rest_ms": rest * 1e3, **_run(server, order)}
        if inspect is not None:
            inspect(server)
        return result


def _run(server: ApiServer, order: Order) -> dict[str, Any]:
    pids = {"scheduler": server.engine.scheduler.pid} | {f"frontend {at}": each.pid for at, each in enumerate(server.processes)}
    empty = machine.memory_mib(pids.values())
    client = child.start([sys.executable, "-m", "bench.stream_load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdin.write(msgspec.json.encode(order) + b"\n")
        client.stdin.flush()
        connected = json.loads(client.stdout.readline())
        counts = _accepted(server, order.streams)
        idle = machine.memory_mib(pids.values())
        before = {name: machine.cpu_seconds(pid) for name, pid in pids.items()}
        with machine.Span(client.pid, *pids.values()) as span:
            client.stdin.write(b"go\n")
            client.stdin.flush()
            result = json.loads(client.stdout.readline())
        used = {name: machine.cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        busy = machine.memory_mib(pids.values())
    finally:
        client.kill()
        client.communicate()
    worker = server.engine.worker
    assert isinstance(worker, InstantWorker)
    delays = _delays(worker, np.load(order.arrivals), len(order.words))
    total = max(1, result["tokens"])
    front = sum(seconds for name, seconds in used.items() if name != "scheduler")
    return {
        "tokens": result["tokens"],
        "wrong_lengths": result["wrong_lengths"],
        "tokens_per_s": round(total / result["wall_s"]),
        "us_per_token": {
            "frontends": round(front / total * 1e6, 2),
            "scheduler": round(used["scheduler"] / total * 1e6, 2),
            "client": round(result["client_cpu_s"] / total * 1e6, 2),
        },
        "frontend_tokens_per_cpu_s": round(total / max(front, 1e-9)),
        "sampled_to_client_ms": {f"p{percent}": round(float(np.percentile(delays, percent)), 3) for percent in (50, 90, 99)},
        "connections": counts,
        "connect_s": round(connected["connected_s"], 3),
        "kib_per_idle_connection": round((idle - empty) * 1024 / order.streams, 1),
        "kib_per_stream": round((busy - empty) * 1024 / order.streams, 1),
        "other_cores": round(span.other_cores, 2),
    }


def _accepted(server: ApiServer, streams: int) -> list[int]:
    """Open connections by frontend, when all have been accepted: to a client they are connected before that."""
    counts: list[int] = []

    def complete() -> bool:
        counts[:] = [int(server.engine.arena.status("frontend", at)[Stat.OPEN_CONNECTIONS]) for at in range(len(server.processes))]
        return sum(counts) == streams

    until(complete, 60.0)
    return counts


def _delays(worker: InstantWorker, arrivals: np.ndarray, cycle: int) -> np.ndarray:
    """Milliseconds from sampling to arrival: a token's step is the latest of its residue that had been sampled when it arrived."""
    residues, times = arrivals
    latest = np.searchsorted(worker.sampled[: worker.steps], times, side="right") - 1
    steps = latest - (latest - residues) % cycle
    return np.asarray((times - worker.sampled[steps]) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="256,1024,4096")
    parser.add_argument("--frontends", default="1,2,4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1, help="requests on each connection, one after the other")
    parser.add_argument("--pace-ms", type=float, default=0.0)
    parser.add_argument("--rest-ms", type=float, default=0.0, help="between two looks of the client at its sockets")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    results = []
    for frontends in map(int, arguments.frontends.split(",")):
        for streams in map(int, arguments.streams.split(",")):
            pace, rest = arguments.pace_ms / 1e3, arguments.rest_ms / 1e3
            results.append(measure(streams, frontends, arguments.tokens, arguments.rounds, pace, rest))
            print(json.dumps(results[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"bench": "engine_alone", "results": results}))


if __name__ == "__main__":
    main()
