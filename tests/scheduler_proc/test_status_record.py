"""The scheduler's status record as another process reads it, at any moment of a write."""

from __future__ import annotations

import os
import subprocess
import sys

from ipc.arena import Arena, EngineStats, Stat
from scheduler_proc.metrics import StatusWriter
from tests.ipc.test_arena import SMALL
from tests.scheduler_proc.simulation import Simulation, make_config

# Reads until its input ends, and prints how often and the least it found.
READER = """
import sys, threading
from ipc.arena import Arena, Stat
from tests.ipc.test_arena import SMALL
record = Arena(int(sys.argv[1]), SMALL).status("scheduler")
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
print("reading", flush=True)
reads, least = 0, int(record[Stat.BLOCKS_TOTAL])
while not (reads and ended.is_set()):
    least, reads = min(least, *(int(record[Stat.BLOCKS_TOTAL]) for _ in range(1000))), reads + 1000
print(reads, least)
"""


def test_no_reader_sees_a_number_that_was_never_written() -> None:
    arena, scheduler = Arena.create(SMALL), Simulation(make_config()).scheduler
    record = arena.status("scheduler")
    writer = StatusWriter(record)
    writer.write(scheduler, 0, 0)
    blocks = scheduler.kv.pool.num_blocks
    assert EngineStats.of(record).blocks_total == blocks > 0
    command = [sys.executable, "-c", READER, str(arena.fd)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[arena.fd]) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(100_000):
            writer.write(scheduler, number, 0)
        reader.stdin.close()
        reads, least = map(int, reader.stdout.read().split())
    assert reads > 0
    assert least == blocks
    assert record[Stat.STEPS] == 99_999
    os.close(arena.fd)
