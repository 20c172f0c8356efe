"""What compiling CPU kernels costs a server: tokens of one stream while they are compiled at the first start, and later starts.

    python -m bench.kernel_start MODEL --tree DIRECTORY --seconds 40 --starts 3

The first start has an empty cache, later ones what it left. --tree: a checkout to measure, this one by default; two in turns make a
comparison. Each line of the result is a start: seconds to ready, tokens by second after it, CPU seconds and memory of the worker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import child, machine
from bench.serving import READY

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def server(model: list[str], tree: str, cache: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A server of the checkout `tree`, its address and its own count of seconds to ready."""
    environment = os.environ | {"PYTHONPATH": tree, "XDG_CACHE_HOME": cache, "NUMBA_CACHE_DIR": f"{cache}/numba"}
    command = [sys.executable, "-m", "quire", "serve", *model, "--port", "0", "--log-level", "warning"]
    process = child.start(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        found = next(found for line in process.stdout if (found := READY.search(line)))
        yield process, found[1], float(found[2])
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def used(pid: int) -> dict[str, float]:
    """CPU seconds and MiB of memory."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"cpu_seconds": machine.cpu_seconds(pid)} | {name: int(status[name].split()[0]) // 1024 for name in ("VmRSS", "RssAnon")}


def stream(url: str, seconds: float) -> list[int]:
    """One request after another, each streamed; how many tokens came in each second."""
    begin, counts = time.monotonic(), [0] * int(seconds)
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True}).encode()
    while True:
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    second = int(time.monotonic() - begin)
                    if second >= len(counts):
                        return counts
                    counts[second] += 1


def measure(model: list[str], tree: str, cache: str, seconds: float) -> dict[str, Any]:
    with server(model, tree, cache) as (process, url, ready):
        worker = next(pid for pid in machine.children(process.pid) if machine.name_of(pid).startswith("quire-worke"))
        at_ready = used(worker)
        time.sleep(3.0)
        idle = used(worker)
        return {
            "ready_seconds": ready, "at_ready": at_ready, "after_3_idle_seconds": idle, "tokens_by_second": stream(url, seconds),
            "after": used(worker),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="the demo model if left out")
    parser.add_argument("--tree", default=str(ROOT))
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        starts = [measure(options.model, options.tree, cache, options.seconds if not number else 5) for number in range(options.starts)]
    print(json.dumps({"first": starts[0], "later": starts[1:]}, indent=1))


if __name__ == "__main__":
    main()
