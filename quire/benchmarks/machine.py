"""The machine that a result was measured on. Only the standard library: `bench.gpu` asks where packages may be missing."""

from __future__ import annotations

import platform


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The first processor's name, in Linux's words; Arm's have numbers for one (MIDR_EL1): as 'aarch64 0x41 0xd0c', maker and part."""
    try:
        with open(cpuinfo, encoding="utf-8") as handle:
            known = [line.partition(":") for line in handle.read().partition("\n\n")[0].splitlines()]
    except OSError:
        known = []
    words = {key.strip(): value.strip() for key, _, value in known}
    if name := words.get("model name"):
        return name
    numbers = (words.get("CPU implementer", ""), words.get("CPU part", ""))
    return " ".join([platform.machine(), *filter(None, numbers)])
