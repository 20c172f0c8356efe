"""Where images of kernels lie: in the user's cache, under the hash of all they were made from, so that none is ever stale.

A file is taken only if it belongs to this user or to root, nobody else may write it, and it is whole (image.py). Its time of change is
when it was last used: whoever puts a new one there removes what has not been used for long, by older sources or versions.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels_cpu.image import Image

log = logging.getLogger(__name__)

KEPT_SECONDS = 90 * 24 * 3600.0


def directory() -> Path:
    """$XDG_CACHE_HOME/quire/cpu, or ~/.cache/quire/cpu. Raises RuntimeError if there is no home either."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "cpu"


def find(key: str) -> Image | None:
    """The image kept under this key, if it can be used."""
    try:
        path = _path(key)
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            if state.st_uid not in (os.geteuid(), 0) or state.st_mode & 0o022:
                log.warning("%s is not used: others may write it", path)
                return None
            content = file.read()
    except (OSError, RuntimeError):
        return None
    try:
        os.utime(path)
    except OSError:
        pass  # root's, or on a file system that is read-only
    try:
        return Image.from_bytes(content)
    except ValueError as error:
        log.warning("%s is not used: %s", path, error)
        return None


def keep(key: str, image: Image) -> None:
    """Put it there, at once or not at all, and remove what nobody uses. Raises OSError or RuntimeError where that is not possible."""
    path = _path(key)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(image.to_bytes())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sweep(path.parent)


@contextmanager
def alone(key: str) -> Iterator[None]:
    """Hold the right to make this key's image. Raises OSError or RuntimeError where there can be no cache."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Remove images, their locks, and what was left half written.

    Others may do the same meanwhile, or read an image that goes. Where a lock goes that somebody holds, two compile the same, no more.
    """
    oldest = time.time() - KEPT_SECONDS
    for path in (*folder.glob("*.image"), *folder.glob("*.lock"), *folder.glob(".*.image.*")):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except OSError:
            pass


def _path(key: str) -> Path:
    return directory() / f"{key}.image"
