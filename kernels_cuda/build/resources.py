"""What a kernel uses of the machine, read from ptxas's words."""

from __future__ import annotations

import re
from dataclasses import dataclass

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
PROPERTIES = re.compile(r"Function properties for (\w+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SERIALIZED = re.compile(r"wgmma\.mma_async instructions are serialized due to (.*?) in (?:the )?function '(\w+)'")
STATIC_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Resources:
    """registers per thread; stack, spill_stores, spill_loads, shared (static) in bytes; serialized: why its wgmma wait for each other, if
    they do."""

    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    serialized: str = ""

    def faults(self, budget: int) -> list[str]:
        """What is wrong with it, in words: nothing, for a good kernel."""
        found = []
        if self.spill_stores or self.spill_loads:
            found.append(f"spills {self.spill_stores} + {self.spill_loads} bytes")
        if self.stack:
            found.append(f"has a stack frame of {self.stack} bytes (an array indexed at run time?)")
        if self.registers > budget:
            found.append(f"uses {self.registers} registers, its budget is {budget}")
        if self.serialized:
            found.append(f"has its wgmma serialized by the compiler: {self.serialized}")
        return found


def parse_log(log: str) -> dict[str, Resources]:
    """Resources by entry, from a log made with --ptxas-options=-v. A called function's stack counts for the entry before it."""
    found: dict[str, Resources] = {}
    current: Resources | None = None
    reasons = {match[2]: match[1] for match in SERIALIZED.finditer(log)}
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            current = found.setdefault(entry[1], Resources(serialized=reasons.get(entry[1], "")))
        if current is None:
            continue
        if stack := STACK.search(line):
            current.stack = max(current.stack, int(stack[1]))
            current.spill_stores += int(stack[2])
            current.spill_loads += int(stack[3])
        if used := USED.search(line):
            current.registers = int(used[1])
            if shared := STATIC_SHARED.search(line):
                current.shared = int(shared[1])
    return found
