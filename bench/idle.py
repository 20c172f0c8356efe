"""What an engine costs that nobody uses: CPU of all its processes together, in per cent of one core.

    python -m bench.idle [--seconds 10] [--connections 100] [--frontends 1] [--json]

Measured twice, after a first request: without any connection, and with so many idle keep-alive connections that have each had an answer.
Kernels that are compiled in the background after the first start are waited for.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from bench import machine
from bench.serving import Server

SETTLED_NS = 20_000_000
SETTLE_SECONDS = 120.0


def measure(seconds: float, connections: int, flags: list[str]) -> dict[str, Any]:
    with Server("", flags) as server:
        address = urlsplit(server.url).netloc
        _ask(http.client.HTTPConnection(address)).close()
        _settle(server)
        alone = _percent(server, seconds)
        held = [_ask(http.client.HTTPConnection(address)) for _ in range(connections)]
        _settle(server)
        with_connections = _percent(server, seconds)
        for connection in held:
            connection.close()
    return {
        "seconds": seconds,
        "connections": connections,
        "percent_of_a_core": {"alone": round(sum(alone.values()), 3), "with_connections": round(sum(with_connections.values()), 3)},
        "by_process": {name: [round(alone[name], 3), round(with_connections[name], 3)] for name in alone},
    }


def _ask(connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
    body = json.dumps({"prompt": [300, 301], "max_tokens": 2, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    return connection


def _settle(server: Server) -> None:
    """Return when a second has passed in which the engine did next to nothing, or after a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        if sum(_used(server, 1.0).values()) < SETTLED_NS:
            return


def _percent(server: Server, seconds: float) -> dict[str, float]:
    return {name: used / seconds / 1e7 for name, used in _used(server, seconds).items()}


def _used(server: Server, seconds: float) -> dict[str, int]:
    """Nanoseconds of CPU by process, with what they have started."""
    processes = server.processes()
    own = {name: [pid] if name == "supervisor" else machine.tree(pid) for name, pid in processes.items()}
    before = {pid: machine.running_ns(pid) for pids in own.values() for pid in pids}
    time.sleep(seconds)
    return {name: sum(machine.used_ns(before[pid], machine.running_ns(pid)) for pid in pids) for name, pids in own.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--frontends", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    result = measure(arguments.seconds, arguments.connections, ["--frontends", str(arguments.frontends)])
    for name, (alone, held) in result["by_process"].items():
        print(f"{name:16} {alone:6.3f} %   with {arguments.connections} idle connections {held:6.3f} %")
    total = result["percent_of_a_core"]
    print(f"{'together':16} {total['alone']:6.3f} %   with {arguments.connections} idle connections {total['with_connections']:6.3f} %")
    if arguments.json:
        print(json.dumps({"bench": "idle", "results": [result]}))


if __name__ == "__main__":
    main()
