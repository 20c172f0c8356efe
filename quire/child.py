"""Becomes the process it was started for: `python -m quire.child`, with a ChildSpec in the descriptor that QUIRE_SPEC_FD names.

If that is a socket, it is a worker that was started early (quire/early_workers.py): it imports first, and is sent its spec later.
Imports are few and late, because every engine start pays for them once per process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from quire import quick_imports

if TYPE_CHECKING:
    from ipc.config import ChildSpec

SPEC_FD = "QUIRE_SPEC_FD"
MAX_FDS = 8
SUPERVISOR_PID = "QUIRE_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> int:
    """Run one child to its end; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_supervisor()
    quick_imports.begin()
    spec = read_spec(partial(_entry, "worker"))
    _show_name(spec.role, spec.index)
    entry = _entry(spec.role)
    quick_imports.end()
    return entry(spec)


def _entry(role: str) -> Callable[[ChildSpec], int]:
    """Import what the process needs; the function that is the process, and that a worker does not return from."""
    if role == "scheduler":
        from scheduler_proc.run import run as scheduler

        return scheduler
    if role == "worker":
        from gpu_workers.run import preload
        from gpu_workers.run import run as worker

        preload()
        return worker
    # Reading them takes longer than all else that the frontend imports, and it speaks TLS to nobody.
    with quick_imports.no_certificates():
        from frontend.run import run as frontend

    return frontend


def read_spec(prepare: Callable[[], object]) -> ChildSpec:
    """What this process shall be. One that was started early does `prepare` and waits for it; it ends here if it is not wanted."""
    fd = int(os.environ.pop(SPEC_FD))
    descriptors: list[int] = []
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        prepare()
        with socket.socket(fileno=fd) as channel:
            message, descriptors, *_ = socket.recv_fds(channel, 16, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not message:
            raise SystemExit(0)
        fd = descriptors.pop(0)
    import msgspec

    from ipc.config import ChildSpec

    spec = msgspec.json.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=ChildSpec)
    os.close(fd)
    return msgspec.structs.replace(spec, fds=dict(zip(spec.fds, descriptors, strict=True))) if descriptors else spec


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
