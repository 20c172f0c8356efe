"""How a child's Python is started. Imports little, because the first worker is started before anything else is imported."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Iterable

from ipc.errors import EngineDeadError
from quire.packages import ROOT

# -P keeps the working directory out of sys.path: a file `ipc.py` of the user's must not become ours.
COMMAND = ["-P", "-m", "quire.child"]


def launch(command: list[str], role: str, spec_fd: int, fds: Iterable[int] = ()) -> subprocess.Popen[bytes]:
    """Start Python with these arguments; it inherits `fds` and `spec_fd`, in which it finds its ChildSpec, under the same numbers.

    Raises EngineDeadError.
    """
    if not sys.executable:
        raise EngineDeadError("this Python does not know its own executable (sys.executable is empty), so no process can be started")
    environment = os.environ | {"QUIRE_SPEC_FD": str(spec_fd), "QUIRE_SUPERVISOR_PID": str(os.getpid()), "PYTHONPATH": _python_path()}
    try:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=(spec_fd, *fds),
            # A group of its own: Ctrl-C in a terminal or a notebook reaches the supervisor alone, which then ends the children in order.
            process_group=0,
        )
    except OSError as error:
        raise EngineDeadError(f"cannot start a process for the {role}: {error.strerror}") from None


def _python_path() -> str:
    """PYTHONPATH under which a child finds the quire that runs here.

    An installed quire is found anyway; naming site-packages would put it before the standard library.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    if ROOT in (*site.getsitepackages(), site.getusersitepackages()):
        return inherited
    return os.pathsep.join([ROOT, inherited] if inherited else [ROOT])
