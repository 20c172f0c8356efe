"""What must outlive the server: a directory with uploaded files and one SQLite database. Made when it is first needed.

Several processes use it at once, also of several engines that serve the same model: SQLite's locks keep them apart, and a lock on a file of
its own says which one of them runs batches (frontend/batch_runner.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from frontend.http_errors import not_supported
from ipc.errors import ConfigError

OFF = "none"
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 10.0
Result = TypeVar("Result")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL, completion_window TEXT NOT NULL, metadata TEXT, output_seconds INTEGER, model TEXT,
    output_file_id TEXT, error_file_id TEXT, errors TEXT,
    total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0, cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0, reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, in_progress_at INTEGER, finalizing_at INTEGER, completed_at INTEGER,
    failed_at INTEGER, expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER
);
CREATE TABLE IF NOT EXISTS batch_lines (
    batch INTEGER NOT NULL, line INTEGER NOT NULL, failed INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (batch, line)
);
"""


class StateDir:
    """One model's part of the state directory. path: its absolute name, '' if there is none. why_not: why nothing can be kept."""

    def __init__(self, wanted: str, model: str) -> None:
        """wanted: the setting. Raises ConfigError if a directory that was asked for cannot be used."""
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "state")
        self.why_not = ""
        base = "" if wanted == OFF else wanted or _default()
        self.path = os.path.join(os.path.abspath(base), _folder(model)) if base else ""
        if not base:
            self.why_not = "files and batches are off here" if wanted == OFF else "there is no directory to keep files in; set --state-dir"
        elif wanted:
            try:
                os.makedirs(self.path, 0o700, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--state-dir: cannot make {self.path}: {error.strerror}") from None
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise ConfigError(f"--state-dir: cannot write into {self.path}")

    @property
    def exists(self) -> bool:
        """Whether anything has ever been kept."""
        return bool(self.path) and os.path.exists(self.place("state.sqlite"))

    def place(self, name: str) -> str:
        return os.path.join(self.path, name)

    def make(self) -> bool:
        """Make the directory if there is none; False if that cannot be done."""
        if self.why_not:
            return False
        try:
            os.makedirs(self.place("files"), 0o700, exist_ok=True)
        except OSError:
            return False
        return True

    async def run(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do `job` as one transaction, in the thread that the database belongs to. Raises InvalidRequestError where nothing can be kept."""
        if self.why_not:
            raise not_supported(self.why_not, "file")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, job)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._database is not None:
            self._database.close()
            self._database = None

    def _do(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        database = self._database or self._open()
        # IMMEDIATE: what is read will still be so when it is written.
        database.execute("BEGIN IMMEDIATE")
        try:
            result = job(database)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
        return result

    def _open(self) -> sqlite3.Connection:
        made = self.make()
        try:
            database = sqlite3.connect(self.place("state.sqlite"), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error:
            why = "cannot be used" if made else "cannot be made"
            raise not_supported(f"the server's state directory {why}", "file") from None
        database.row_factory = sqlite3.Row
        # A commit survives the process; the last ones before a power failure may be lost, which costs running those lines again.
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        if version > _SCHEMA_VERSION:
            database.close()
            raise not_supported("the server's state directory was written by a newer quire", "file")
        database.executescript(_SCHEMA + f"PRAGMA user_version={_SCHEMA_VERSION};")
        self._database = database
        return database


def _default() -> str:
    """systemd's StateDirectory=, else what the XDG base directory specification names; '' without a home."""
    systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("HOME", "")
    xdg = os.environ.get("XDG_STATE_HOME", "") or (home and os.path.join(home, ".local", "state"))
    return systemd or (xdg and os.path.join(xdg, "quire"))


def _folder(model: str) -> str:
    """A directory name for a model's: hub ids have a slash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", model).lstrip(".") or "model"
