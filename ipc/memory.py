"""How much memory there is to take."""

from __future__ import annotations

import os


def available_memory() -> int:
    """Bytes this process can take: the machine's MemAvailable, or what its cgroup still allows where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit, open("/sys/fs/cgroup/memory.current", encoding="ascii") as used:
            free = min(free, max(0, int(limit.read()) - int(used.read())))
    except (OSError, ValueError, StopIteration):
        pass  # no cgroup limit ("max"), or not Linux: what we have so far holds
    return free
