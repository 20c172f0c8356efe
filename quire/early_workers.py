"""Workers that are started before anybody knows what they shall do, because importing torch takes most of an engine's start.

`quire serve` begins with them; they import while the supervisor reads the model's files and gets ready itself. What a child otherwise
inherits when it is started, its ChildSpec and descriptors, is sent to them over a socket (SCM_RIGHTS).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from types import TracebackType
from typing import NamedTuple

from quire.child_command import COMMAND, launch


class EarlyWorker(NamedTuple):
    """A process that imports, and then waits for its spec at the other end of `socket`."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def hand(self, spec_fd: int, fds: list[int]) -> None:
        """Tell it what it is: descriptors of its spec and, in the order of the spec's `fds`, of what that names."""
        with self.socket, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: whoever watches it will see that
            socket.send_fds(self.socket, [b"spec"], [spec_fd, *fds])


class EarlyWorkers:
    """So many of them; a context manager, at whose end those that nobody took are killed. Raises EngineDeadError."""

    def __init__(self, count: int) -> None:
        self._waiting: list[EarlyWorker] = []
        try:
            for _ in range(count):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._waiting.append(EarlyWorker(launch(COMMAND, "worker", theirs.fileno()), ours))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> EarlyWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """Of those that nobody took."""
        return [worker.process.pid for worker in self._waiting]

    def take(self) -> EarlyWorker | None:
        """One that is now the caller's; None if there is none left."""
        return self._waiting.pop() if self._waiting else None

    def _end(self) -> None:
        while (worker := self.take()) is not None:
            worker.process.kill()
            worker.process.wait()
            worker.socket.close()
