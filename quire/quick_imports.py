"""What makes imports slow for nothing, switched off while a process of ours starts. Never used inside a user's program."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

_CERTIFICATES = "SSL_CERT_FILE"


def begin() -> None:
    """To be called before the first import of size.

    Modules leave hardly any garbage behind, and looking for it took an eighth of torch's import. numpy's OpenBLAS starts a thread for
    each core, which spin for a while; nothing of ours multiplies with it. torch brings its own libraries, and numpy has read the
    variable by then.
    """
    gc.disable()
    with _variable("OPENBLAS_NUM_THREADS", "1"):
        import numpy  # noqa: F401


def end() -> None:
    """What was imported lives as long as the process; the collector need not look at it again."""
    gc.freeze()
    gc.enable()


@contextlib.contextmanager
def no_certificates() -> Iterator[None]:
    """aiohttp makes a TLS context as it is imported, which reads all certificates that the machine trusts."""
    with _variable(_CERTIFICATES, os.devnull):
        yield


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """The environment variable is `value` for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
