"""What a benchmark starts ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import machine
from ipc.errors import QuireError
from quire import admin_client
from tests.processes.server import alive, eventually

ROOT = Path(__file__).resolve().parents[2]
BATCHES = ["bench.batches", "--requests", "1", "--frontends", "1"]
SERVING = ["bench.serving", "", "--concurrency", "2", "--output-len", "1500", "--", "--frontends", "1"]


def computes(runtime: Path) -> bool:
    """Whether the server is at work: then it has said all that it says at its start, and does not stumble over a pipe that nobody reads."""
    for path in runtime.glob("quire-*/admin"):
        try:
            return bool(admin_client.ask(str(path), "GET", "/admin/state", {})[1]["running"])
        except (QuireError, OSError):
            continue
    return False


@pytest.mark.parametrize(
    "command, number",
    [(BATCHES, signal.SIGTERM), (BATCHES, signal.SIGKILL), (SERVING, signal.SIGTERM), (SERVING, signal.SIGINT)],
    ids=["batches-term", "batches-kill", "serving-term", "serving-int"],
)
def test_no_server_is_left(command: list[str], number: signal.Signals, runtime: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(runtime), "XDG_RUNTIME_DIR": str(runtime)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the signal reaches the benchmark alone, not what it has started
    ) as process:
        family = [process.pid]
        try:
            eventually(lambda: computes(runtime))
            family = machine.tree(process.pid)
            assert len(family) >= 5, "supervisor, frontend, scheduler, worker and the benchmark itself"
            process.send_signal(number)
            process.wait(100)
            eventually(lambda: not any(map(alive, family)))
        finally:
            for pid in filter(alive, family):
                os.kill(pid, signal.SIGKILL)
