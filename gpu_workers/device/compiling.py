"""Kernels that are compiled in a thread of their own, so that a process serves from its first second on."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)

# One builds at a time. numba compiles no faster otherwise, and its modules import one another in circles: of two threads that begin at
# different ends each would get half of a module, since Python gives up waiting where waiting would never end.
_BUILDING = threading.Lock()


class Compiling:
    """What a subclass builds is there once `ready` is True; until then, and where it cannot be built, torch computes the same."""

    def __init__(self, what: str) -> None:
        """what: for the log, in the plural."""
        self.ready = False
        self._what = what
        self._thread = threading.Thread(target=self._compile, name=f"compile {what}", daemon=True)

    def start(self) -> None:
        """Begin to compile."""
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether all is ready within `timeout` seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return self.ready

    def build(self, cache: bool) -> bool:
        """Compile, keeping the code on disk if `cache`; False where this machine has no use for it. It may raise anything."""
        raise NotImplementedError

    def _compile(self) -> None:
        began = time.monotonic()
        try:
            with _BUILDING:
                try:
                    ready = self.build(True)
                except RuntimeError:  # numba found no directory that it may write to
                    ready = self.build(False)
        except Exception as error:
            # Whatever numba or a missing libgomp may raise.
            log.warning("%s stay with torch: %s: %s", self._what, type(error).__name__, error)
            return
        self.ready = ready
        log.debug("%s compiled in %.1f s", self._what, time.monotonic() - began)
