"""Becomes the process it was started for: `python -m quire.child`, with a ChildSpec in the descriptor that QUIRE_SPEC_FD names.

Imports are few and late, because every engine start pays for them once per process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SPEC_FD = "QUIRE_SPEC_FD"
SUPERVISOR_PID = "QUIRE_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> int:
    """Run one child to its end; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_supervisor()
    import msgspec

    from ipc.config import ChildSpec

    fd = int(os.environ.pop(SPEC_FD))
    spec = msgspec.json.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=ChildSpec)
    os.close(fd)
    _show_name(spec.role, spec.index)
    if spec.role == "scheduler":
        from scheduler_proc.run import run as scheduler

        return scheduler(spec)
    if spec.role == "worker":
        from gpu_workers.run import run as worker

        worker(spec)  # ends the process
    from frontend.run import run as frontend

    return frontend(spec)


def _end_with_supervisor() -> None:
    """Ask the kernel for SIGKILL when the supervisor dies, then see whether it died before the kernel could know."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    supervisor = os.environ.pop(SUPERVISOR_PID, "")
    if supervisor and os.getppid() != int(supervisor):
        raise SystemExit("the supervisor ended before this process began")


def _show_name(role: str, index: int) -> None:
    """What ps and top call this process; the kernel keeps 15 bytes."""
    name = "quire-sched" if role == "scheduler" else f"quire-{role[:5]}-{index}"
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


if __name__ == "__main__":
    sys.exit(main())
