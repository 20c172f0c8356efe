"""Entry of the scheduler process."""

from __future__ import annotations

from ipc.config import ChildSpec
from scheduler_proc.loop import SchedulerActor


def run(spec: ChildSpec) -> int:
    """Be the scheduler until told to stop; returns the exit code."""
    return SchedulerActor(spec).run()
