"""What benchmarks read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from bench import machine


def test_a_span_counts_a_child_as_ours_and_the_tree_finds_it() -> None:
    code = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint('x', flush=True)\ntime.sleep(60)"
    with machine.Span() as span:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            assert child.pid in machine.tree(os.getpid()) and child.pid in machine.children(os.getpid())
            assert machine.memory_mib([child.pid]) > 1
            used = machine.cpu_seconds(child.pid)
        finally:
            child.kill()
            child.communicate()
    assert used >= 0.25 and span.own_s >= 0.25 and span.wall_s > 0 and span.other_cores >= 0


def test_a_thread_that_ends_does_not_make_the_others_time_negative() -> None:
    working, done = threading.Event(), threading.Event()

    def work() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        working.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    working.wait()
    before = machine.running_ns(os.getpid())
    assert sum(before.values()) >= 50_000_000
    done.set()
    thread.join()
    assert 0 <= machine.used_ns(before, machine.running_ns(os.getpid())) < 50_000_000


def test_what_is_gone_counts_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert machine.running_ns(child.pid) == {} and machine.cpu_seconds(child.pid) == 0.0 and machine.memory_mib([child.pid]) == 0.0
    assert 0 < machine.since_start() < 3600 * 24 and machine.busy_seconds() > 0
