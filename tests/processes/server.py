"""A `quire serve` process for tests: start it, read what it prints, find its children, end it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.child import start

ROOT = Path(__file__).resolve().parents[2]
URL = re.compile(r"ready at (http://\S+) after ([\d.]+) s")


class Server:
    """Arguments are those of `quire serve` after `--port 0`. Use it as a context manager; on leaving it is killed if it still runs."""

    def __init__(self, *arguments: str, runtime: Path | None = None) -> None:
        self.base = runtime
        environment = os.environ | ({"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(runtime)} if runtime else {})
        command = [sys.executable, "-m", "quire", "serve", "--port", "0", *arguments]
        self.process = start(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def ready(self, seconds: float = 100.0) -> Server:
        """Wait until it says that it is; then `url` and `startup` (seconds by its own account) are known."""
        eventually(lambda: URL.search(self.output) is not None or self.process.poll() is not None, seconds)
        found = URL.search(self.output)
        assert found is not None, self.output
        eventually(lambda: any(line.startswith("curl ") for line in self.lines))
        self.url, self.startup = found[1], float(found[2])
        return self

    def with_kernels(self, workers: int = 1, seconds: float = 200.0) -> Server:
        """Wait until nothing more is being compiled: from now on the same work gives the same bits."""

        def settled(worker: int) -> bool:
            said = [line for line in self.lines if f" worker-{worker}: CPU kernels in use: " in line]
            return bool(said) and "being compiled" not in said[-1]

        eventually(lambda: all(map(settled, range(workers))), seconds)
        return self

    def wait(self, seconds: float = 100.0) -> int:
        """The exit code, when it and all who hold its output have ended."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        assert not self._reader.is_alive(), "somebody outlived the supervisor and still holds its output"
        return code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def children(self) -> dict[str, int]:
        """Process ids by the name ps shows, as 'quire-worke-0'."""
        return {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in children_of(self.process.pid)}

    def post(self, path: str, body: dict[str, Any], seconds: float = 60.0) -> Any:
        with self.open(path, body, seconds) as response:
            return json.load(response)

    def open(self, path: str, body: dict[str, Any] | None = None, seconds: float = 60.0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=seconds)

    def events(self, path: str, body: dict[str, Any], seconds: float = 60.0) -> Iterator[dict[str, Any]]:
        """The server-sent events of a streamed answer."""
        with self.open(path, body | {"stream": True}, seconds) as response:
            for line in response:
                data = line.strip().removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    yield json.loads(data)


def children_of(pid: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(file.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 100.0) -> None:
    """Wait for it; a busy machine may take long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
