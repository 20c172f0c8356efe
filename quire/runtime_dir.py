"""The engine's private directory: a fresh one (mode 0700) for each life, removed at its end, also by the next engine after a kill -9.

Its owner holds a lock on a file inside while it lives; whoever gets that lock of another directory may remove it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile

from ipc.errors import ConfigError

PREFIX = "quire-"
# No directory of somebody else has a file of this name, so that sweeping can only hit our own.
LOCK_NAME = ".quire-engine-lock"
# A socket's path may have 107 bytes; 100 leaves room for none but the longest of ours, '/frontends-' and an epoch of ten digits.
MAX_PATH = 100 - len("/frontends-0123456789")
# Another engine that starts may sweep a new directory away in the moment before its lock is held; hardly twice.
TRIES = 3


class RuntimeDir:
    """One locked directory. `path`: its absolute name."""

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd
        self._owner = os.getpid()

    @classmethod
    def create(cls) -> RuntimeDir:
        """Make a directory in $RUNTIME_DIRECTORY (systemd), $XDG_RUNTIME_DIR or the temporary directory; raises ConfigError."""
        reasons = []
        for base in _bases():
            _sweep(base)
            for _ in range(TRIES):
                try:
                    path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
                except OSError as error:
                    reasons.append(f"{base}: {error.strerror}")
                    break
                lock_fd = _lock(path, create=True)
                if lock_fd is not None:
                    return cls(path, lock_fd)
                reasons.append(f"{base}: cannot lock {path}")
        why = "; ".join(reasons)
        raise ConfigError(f"no place for the engine's sockets ({why}); set XDG_RUNTIME_DIR to a writable directory with a short name")

    def remove(self) -> None:
        """Delete it with all its contents; a second call, or one in a forked copy of the owner, does nothing."""
        if self._lock_fd < 0 or os.getpid() != self._owner:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)
        self._lock_fd = -1


def sockets(name: str) -> list[str]:
    """Paths of sockets of this name in all directories there are, those of dead engines included."""
    found = []
    for base in _bases():
        try:
            entries = [entry.path for entry in os.scandir(base) if entry.name.startswith(PREFIX)]
        except OSError:
            continue
        found += [path for entry in entries if os.path.exists(path := os.path.join(entry, name))]
    return found


def _bases() -> list[str]:
    """Directories to try, in order; those whose name is too long for a socket are left out."""
    systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    wanted = [systemd, os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
    return [base for base in dict.fromkeys(wanted) if base and len(os.fsencode(base)) + 1 + len(PREFIX) + 8 <= MAX_PATH]


def _lock(path: str, create: bool) -> int | None:
    """A descriptor that holds the directory's lock; None if somebody else holds it or removed the directory meanwhile."""
    name = os.path.join(path, LOCK_NAME)
    try:
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(name).st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _sweep(base: str) -> None:
    """Remove directories that engines left which were killed."""
    try:
        entries = [entry for entry in os.scandir(base) if entry.name.startswith(PREFIX)]
    except OSError:
        return
    for entry in entries:
        try:
            if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
        except OSError:
            continue
        fd = _lock(entry.path, create=False)
        if fd is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(fd)
