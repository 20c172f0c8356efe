"""How much memory there is to take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

OWN_CGROUPS = "/proc/self/cgroup"
CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes this process can take: the machine's MemAvailable, or what its cgroups still allow where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        pass  # not Linux: what we have so far holds
    return min([free, *(max(0, limit - used) for limit, used in _limits())])


def total_memory() -> int:
    """Bytes that this process could take if all else were gone: the machine's memory, or its cgroups' least limit."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(limit for limit, _ in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of this process's cgroup (a container's, a service's with MemoryMax=) and those around it that have one."""
    try:
        with open(OWN_CGROUPS, encoding="utf-8") as lines:
            own = Path(next(line[len("0::/") :].strip() for line in lines if line.startswith("0::/")))
    except (OSError, StopIteration):
        return  # no cgroups, or only those of version 1
    for folder in (own, *own.parents):
        try:
            limit, used = ((CGROUPS / folder / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
            yield int(limit), int(used)
        except (OSError, ValueError):
            pass  # no limit ("max"), or one of the root, which has none
