"""One child as its supervisor sees it: how it is started, whether it lives, and what it said last."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field

import msgspec

from ipc.arena import I64, Stat, State
from ipc.config import ChildSpec
from quire.child_command import COMMAND, launch
from quire.early_workers import EarlyWorker


@dataclass(frozen=True)
class Patience:
    """Seconds without a heartbeat after which a process counts as hung: `idle` when it also used no CPU time, `busy` when it did."""

    idle: float
    busy: float


# The loops of scheduler and frontend never block for long. A worker may be inside one long step, or read weights.
RUNNING = {
    "scheduler": Patience(idle=10.0, busy=30.0),
    "frontend": Patience(idle=10.0, busy=30.0),
    "worker": Patience(idle=60.0, busy=600.0),
}
# Imports from a cold disk, tokenizer and weights: long is fine as long as something moves.
STARTING = Patience(idle=120.0, busy=1800.0)

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Child:
    """A started process. `introduced`: its Hello came, so messages reach it."""

    spec: ChildSpec
    process: subprocess.Popen[bytes]
    pidfd: int
    status: I64
    introduced: bool = False
    ready: bool = False
    ready_since: float = 0.0
    drained: bool = False
    condemned: str = ""
    fatal: str = ""
    user_error: bool = False
    last_sign: float = field(default_factory=time.monotonic)
    _last_cpu: float = 0.0
    _last_cpu_sign: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.spec.role if self.spec.role == "scheduler" else f"{self.spec.role} {self.spec.index}"

    def kill(self, why: str) -> None:
        """SIGKILL it; `why` is what the log will say of its end."""
        self.condemned = self.condemned or why
        self.process.kill()

    def sign_of_life(self) -> None:
        """It sent a message, or the supervisor itself was asleep and cannot know better."""
        self.last_sign = self._last_cpu_sign = time.monotonic()

    def overdue(self, now: float) -> str:
        """Why this process counts as hung; '' if it does not."""
        if self.status[Stat.EPOCH] == self.spec.epoch:
            self.last_sign = max(self.last_sign, int(self.status[Stat.HEARTBEAT_NS]) / 1e9)
        silent = now - self.last_sign
        patience = RUNNING[self.spec.role] if self.ready else STARTING
        if silent < patience.idle / 2:
            return ""
        cpu = cpu_seconds(self.process.pid)
        if cpu > self._last_cpu:
            self._last_cpu, self._last_cpu_sign = cpu, now
        if silent > patience.busy:
            return f"gave no heartbeat for {silent:.0f} s"
        if silent > patience.idle and now - self._last_cpu_sign > patience.idle / 2:
            return f"gave no heartbeat and did nothing for {silent:.0f} s"
        return ""

    def end_of_life(self) -> str:
        """How it ended, for people; call after the process was reaped."""
        if self.fatal:
            return self.fatal
        code = self.process.returncode
        if self.condemned:
            return f"the {self.name} {self.condemned} and was killed"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
            hint = " (the kernel does this when memory runs out)" if name == "SIGKILL" else ""
            return f"the {self.name} was ended by {name}{hint}"
        return f"the {self.name} ended with exit code {code}; the lines above may say why"

    def release(self) -> None:
        """Close the descriptor and clear the status record, so that nobody takes its last words for a living process's."""
        os.close(self.pidfd)
        if self.status[Stat.EPOCH] == self.spec.epoch:
            self.status[Stat.STATE] = State.ABSENT


def start(spec: ChildSpec, status: I64, early: EarlyWorker | None = None) -> Child:
    """Start `python -m quire.child` for `spec`, whose descriptors it inherits under the same numbers, or tell `early` that this is what
    it has been started for. Raises EngineDeadError.
    """
    fd = os.memfd_create("quire-spec", os.MFD_CLOEXEC)
    try:
        os.write(fd, msgspec.json.encode(spec))
        if early is None:
            process = launch(COMMAND, spec.role, fd, spec.fds.values())
        else:
            process = early.process
            early.hand(fd, list(spec.fds.values()))
    finally:
        os.close(fd)
    return Child(spec, process, os.pidfd_open(process.pid), status)


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, all threads; 0.0 when it is gone. Source: proc(5), fields utime and stime."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_SECOND
