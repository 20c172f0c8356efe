"""Entry of a worker process: what must be set before torch is loaded, then the actor."""

from __future__ import annotations

import os

from ipc.config import ChildSpec

# libgomp reads it when torch loads it. Threads that wait for the next parallel region block after about a microsecond instead of
# burning their core for milliseconds: with another busy process on the machine the default made every layer 2 to 10 times
# slower, on a quiet one it gains 5 % (docs/benchmarks.md).
SPIN_COUNT = "1000"


def run(spec: ChildSpec) -> int:
    """Live as worker `spec.index` until told to stop; returns the exit code."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from gpu_workers.worker import Worker

    return Worker(spec).run()
