"""How long a start takes, and what takes it.

    python -m bench.startup [MODEL ...] [--repeat 3] [--json] [-- flags of quire serve]

For each model ('' is the bundled one): seconds from the command to the line that says ready and to the first token of a completion, and the
CPU seconds that each process had used by then. On a busy machine the CPU seconds say more: the start waits for the supervisor and then for
the slowest child, which they put a bound on. Files are read through the page cache; the first repeat may find them on disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import urllib.request
from typing import Any

from bench import machine
from bench.serving import Server


def measure(model: str, flags: list[str]) -> dict[str, Any]:
    with machine.Span() as span:
        began = time.perf_counter()
        with Server(model, flags) as server:
            ready = time.perf_counter() - began
            used = server.cpu_seconds()
            _first_token(server.url)
            first = time.perf_counter() - began
            memory = server.memory_mib()
    return {
        "ready_s": round(ready, 2),
        "first_token_s": round(first, 2),
        "cpu_s": {name: round(seconds, 2) for name, seconds in used.items()},
        "memory_mib": round(memory),
        "other_cores": round(span.other_cores, 2),
    }


def _first_token(url: str) -> None:
    body = json.dumps({"prompt": [300, 301, 302], "max_tokens": 1, "ignore_eos": True}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        assert json.load(response)["usage"]["completion_tokens"] == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[""], help="model directories; default: the bundled model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    words = sys.argv[1:]
    flags = words[words.index("--") + 1 :] if "--" in words else []
    arguments = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    results = []
    for model in arguments.models:
        runs = [measure(model, flags) for _ in range(arguments.repeat)]
        for run in runs:
            print(json.dumps(run), flush=True)
        name = model.rstrip("/").rpartition("/")[2] or "bundled"
        median = {key: statistics.median(run[key] for run in runs) for key in ("ready_s", "first_token_s")}
        print(f"{name}: ready after {median['ready_s']} s, first token after {median['first_token_s']} s (medians of {len(runs)})")
        results.append({"model": name, **median, "runs": runs})
    if arguments.json:
        print(json.dumps({"bench": "startup", "results": results}))


if __name__ == "__main__":
    main()
