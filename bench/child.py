"""Processes that a benchmark starts. Only the standard library, as in bench/machine.py."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import warnings
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def start(command: Sequence[str], last_signal: int = signal.SIGTERM, **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen`, but the kernel sends the child `last_signal` when the calling thread ends, and so when this process is killed
    or crashes. Call it from the main thread."""
    parent = os.getpid()

    def bind() -> None:
        """In the child, before it becomes the command; what is set here survives exec."""
        _prctl(_PR_SET_PDEATHSIG, last_signal)
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be bound to

    with warnings.catch_warnings():
        # From 3.12 on Python warns of code between fork and exec where there are threads; this code asks the kernel two things, no more.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(command, preexec_fn=bind, **options)
