"""The scheduler's side of one process that tries grammars out (grammar_child.py): asks it, and kills it when it takes too much."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from ipc.grammar import Grammar
from scheduler_proc.grammar_child import ChildTask, Verdict, receive, send

ROOT = str(Path(__file__).resolve().parent.parent)
COMMAND = ["-P", "-m", "scheduler_proc.grammar_child"]
START_SECONDS = 120.0
_VERDICT = msgspec.msgpack.Decoder(Verdict)


class GrammarError(Exception):
    """A grammar that cannot be used, and why. passing: with less load it might have been."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class CompilerDownError(Exception):
    """The compiler itself cannot be started, and why."""


class _ChildDiedError(Exception):
    """In the middle of a question."""


class GrammarCompiler:
    """Used by one thread, which must live as long as the process: the kernel ends the child when the thread that started it ends."""

    def __init__(self, task: ChildTask, command: list[str] | None = None) -> None:
        """task: the child's. command: arguments of Python, in tests."""
        self._task = task
        self._command = command or COMMAND
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Of the living child."""
        return self._process.pid if self._process is not None else None

    def check(self, grammar: Grammar) -> str:
        """The grammar as llguidance's text, proven to compile within the limits. Raises GrammarError or CompilerDownError."""
        if self._process is not None and self._process.poll() is None:
            try:
                return self._ask(grammar)
            except _ChildDiedError:
                pass  # perhaps before this grammar came to it: a fresh child decides
        try:
            return self._ask(grammar)
        except _ChildDiedError:
            raise GrammarError(f"compiling it takes more than {self._task.memory} MiB of memory, or crashes the compiler") from None

    def _ask(self, grammar: Grammar) -> str:
        connection = self._started()
        try:
            connection.settimeout(self._task.seconds)
            send(connection, grammar)
            verdict = _VERDICT.decode(receive(connection))
        except TimeoutError:
            self.close()
            raise GrammarError(f"it takes more than {self._task.seconds:g} s to compile", passing=True) from None
        except (EOFError, OSError, msgspec.MsgspecError):
            self.close()
            raise _ChildDiedError from None
        if verdict.error:
            raise GrammarError(verdict.error)
        return verdict.text

    def close(self) -> None:
        """Kill the child, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _started(self) -> socket.socket:
        """The connection to a child that has loaded its tokenizer. Raises CompilerDownError."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": _python_path()},
            )
        except OSError as error:
            ours.close()
            raise CompilerDownError(f"the grammar compiler cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        self._connection = ours
        try:
            ours.settimeout(START_SECONDS)
            send(ours, self._task)
            verdict = _VERDICT.decode(receive(ours))
        except (EOFError, OSError, msgspec.MsgspecError):
            self.close()
            raise CompilerDownError("the grammar compiler ended while it started") from None
        if verdict.error:
            self.close()
            raise CompilerDownError(f"the model's tokenizer cannot be used for grammars: {verdict.error}")
        return ours


def _python_path() -> str:
    """PYTHONPATH under which the child finds these packages; an installed quire is found anyway."""
    inherited = os.environ.get("PYTHONPATH", "")
    if ROOT in (*site.getsitepackages(), site.getusersitepackages(), *inherited.split(os.pathsep)):
        return inherited
    return os.pathsep.join([ROOT, inherited] if inherited else [ROOT])
