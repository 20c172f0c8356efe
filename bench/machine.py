"""What a measurement must know of the machine: CPU time and memory of process trees, and how much of it others used meanwhile.

Only the standard library, because the runners of `bench.report` import it in other engines' environments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Above this many cores used by others, a measurement of a compute-bound engine says more about them.
MAX_OTHER_CORES = 0.3


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on. Raises OSError when the process is gone."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def name_of(pid: int) -> str:
    """What ps calls the process. Raises OSError when it is gone."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def children(pid: int) -> list[int]:
    """Living child processes."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = _fields(int(entry))[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry))
    return found


def tree(*roots: int) -> list[int]:
    """Processes and all that descend from them."""
    found, left = [], list(roots)
    while left:
        pid = left.pop()
        found.append(pid)
        left += children(pid)
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads and of reaped children; 0.0 when the process is gone."""
    try:
        fields = _fields(pid)
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / TICKS


def running_ns(pid: int) -> dict[str, int]:
    """CPU time of each living thread in nanoseconds, where cpu_seconds counts in hundredths; empty when the process is gone."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            found[file.parent.name] = int(file.read_text().split()[0])
        except OSError:
            continue
    return found


def used_ns(before: dict[str, int], after: dict[str, int]) -> int:
    """What the threads used between two such looks. One that ended between them takes its time along and counts nothing."""
    return sum(ns - before.get(thread, 0) for thread, ns in after.items())


def memory_mib(pids: Iterable[int]) -> float:
    """Proportional set size: what is shared counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def busy_seconds() -> float:
    """CPU seconds of the whole machine so far, idle and waiting apart."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def since_start() -> float:
    """Seconds since the kernel started this process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(_fields(os.getpid())[19]) / TICKS


class Span:
    """A stretch of time. After `with Span() as span`: wall_s, own_s (CPU seconds of the trees), other_cores (mean cores of all others)."""

    def __init__(self, *roots: int) -> None:
        """roots: processes whose trees count as ours besides this one's."""
        self._roots = {os.getpid(), *roots}

    def __enter__(self) -> Span:
        self._busy, self._own, self._began = busy_seconds(), self._used(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began
        self.own_s = self._used() - self._own
        self.other_cores = max(0.0, busy_seconds() - self._busy - self.own_s) / self.wall_s

    def _used(self) -> float:
        return sum(cpu_seconds(pid) for pid in set(tree(*self._roots)))
