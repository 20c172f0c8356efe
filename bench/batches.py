"""How long a client waits for its first token beside a batch: a server of the demo model, one client after the other, in turns.

    python -m bench.batches [--url http://127.0.0.1:8000] [--requests 60] [--json] [serve flags...]

Three batches, each hard in its own way: lines that fill all rows with long answers, lines that ask for hundreds of completions, and lines
whose prompts fill the context. Before each, the same requests without a batch.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench import child

WORDS = "one two three red blue green stone river cloud seven eight nine".split()
READY = re.compile(r"ready at (http://\S+)")


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


BATCHES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "long answers": ("/v1/completions", [{"prompt": words(n, 5), "max_tokens": 1500, "ignore_eos": True} for n in range(200)]),
    "many completions": (
        "/v1/completions",
        [{"prompt": [words(300 * n + m, 8) for m in range(256)], "max_tokens": 200, "ignore_eos": True} for n in range(40)],
    ),
    "long prompts": ("/v1/embeddings", [{"input": [words(300 * n + m, 1200) for m in range(64)]} for n in range(40)]),
}


class Client:
    """One connection after the other."""

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url).netloc

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        connection = http.client.HTTPConnection(self._at, timeout=120)
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, {"Content-Type": kind})
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {document}")
        return document

    def first_token(self, seed: int) -> float:
        """Seconds until a streamed chat's first text."""
        connection = http.client.HTTPConnection(self._at, timeout=120)
        body = {"messages": [{"role": "user", "content": words(seed, 20)}], "max_tokens": 4, "stream": True, "ignore_eos": True}
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"a client got {answer.status}: {answer.read()!r}")
        while b'"content":"' not in (line := answer.readline()) or b'"content":""' in line:
            if not line:
                raise RuntimeError("the stream ended without text")
        seconds = time.perf_counter() - start
        answer.read()
        connection.close()
        return seconds

    def begin(self, url: str, bodies: list[dict[str, Any]]) -> str:
        lines = [{"custom_id": f"{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
        text = "\n".join(map(json.dumps, lines))
        form = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data; name="file"; '
        form += f'filename="in"\r\n\r\n{text}\r\n--b--\r\n'
        file = self.call("POST", "/v1/files", form.encode(), "multipart/form-data; boundary=b")
        batch = self.call("POST", "/v1/batches", {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"})
        return str(batch["id"])


@contextmanager
def server(flags: list[str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "quire", "serve", "--port", "0", "--state-dir", directory, *flags]
        process = child.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := READY.search(line):
                    yield found.group(1)
                    return
            raise RuntimeError("the server did not start")
        finally:
            process.terminate()
            process.communicate()


def measure(url: str, requests: int) -> dict[str, Any]:
    """For each batch, first tokens without it and beside it, in ms."""
    client, found = Client(url), {}
    client.first_token(0)
    for name, (endpoint, bodies) in BATCHES.items():
        alone = [client.first_token(seed) for seed in range(requests)]
        batch = client.begin(endpoint, bodies)
        time.sleep(3)
        beside = [client.first_token(1000 + seed) for seed in range(requests)]
        state = client.call("POST", f"/v1/batches/{batch}/cancel", {})
        while state["status"] == "cancelling":
            time.sleep(0.2)
            state = client.call("GET", f"/v1/batches/{batch}")
        if state["status"] != "cancelled":
            raise RuntimeError(f"the batch was {state['status']} before it was measured beside")
        rows = {"alone": alone, "beside": beside}
        found[name] = {at: [round(float(ms), 1) for ms in np.percentile(each, [50, 95, 100]) * 1000] for at, each in rows.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", help="a server that runs; else one is started")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    parsed, flags = parser.parse_known_args()
    if parsed.url:
        found = measure(parsed.url, parsed.requests)
    else:
        with server(flags) as url:
            found = measure(url, parsed.requests)
    if parsed.json:
        print(json.dumps(found))
        return
    for name, each in found.items():
        for at in ("alone", "beside"):
            print(f"{name:18} {at:7} p50 {each[at][0]:8.1f}  p95 {each[at][1]:8.1f}  most {each[at][2]:8.1f} ms")


if __name__ == "__main__":
    main()
