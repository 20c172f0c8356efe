"""pytest plugin, `-p bench.arm.patient`: kernels, processes and conditions that tests wait for may take FACTOR times as long.

For a machine that is emulated. Give `--timeout` as well, which bounds a whole test.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from gpu_workers.device.kernel_sets import KernelSet
from tests.processes import server

FACTOR = 30


def _patient(function: Callable[..., Any], default: float | None = None) -> Callable[..., Any]:
    """Of two arguments, the second a time: positional, or named `timeout` or `seconds`, or left out."""

    def waiting(first: Any, *rest: Any, **named: Any) -> Any:
        [(name, given)] = named.items() or [("", rest[0] if rest else default)]
        longer = None if given is None else FACTOR * given
        return function(first, **{name: longer}) if name else function(first, longer)

    return waiting


def _patient_communicate(process: Any, input: Any = None, timeout: float | None = None) -> Any:
    return _communicate(process, input, None if timeout is None else FACTOR * timeout)


_communicate = subprocess.Popen.communicate
subprocess.Popen.communicate = _patient_communicate  # type: ignore[method-assign]
subprocess.Popen.wait = _patient(subprocess.Popen.wait)  # type: ignore[method-assign]
KernelSet.wait = _patient(KernelSet.wait)  # type: ignore[method-assign]
server.eventually = _patient(server.eventually, 20.0)
