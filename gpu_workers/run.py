"""Entry of a worker process: what must be set before torch is loaded, then the actor."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ipc.config import ChildSpec

# libgomp reads it when torch loads it. Threads that wait for the next parallel region block after about a microsecond instead of
# burning their core for milliseconds: with another busy process on the machine the default made every layer 2 to 10 times
# slower, on a quiet one it gains 5 % (docs/benchmarks.md).
SPIN_COUNT = "1000"


def preload() -> None:
    """Import what every worker needs, whatever it shall do: most of the time that an engine takes to start."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    import gpu_workers.worker  # noqa: F401


def run(spec: ChildSpec) -> NoReturn:
    """Live as worker `spec.index` until told to stop, then end the process with its exit code."""
    preload()
    from gpu_workers.worker import Worker

    code = Worker(spec).run()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's teardown, of which nothing is needed: threads may still wait for a step or for kernels.
    os._exit(code)
