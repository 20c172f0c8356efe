"""A thread that sleeps until a step's results have arrived in the arena, and says so on the loop. The loop itself never waits or polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from gpu_workers.cuda.machine import Event
from gpu_workers.device.base import Deliver


class Waiter:
    """deliver: calls something on the loop's thread, as loop.call_soon_threadsafe does."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._queue: SimpleQueue[tuple[Event, Callable[[], None]] | None] = SimpleQueue()
        self._since: float | None = None
        self._thread = threading.Thread(target=self._wait, name="step-waiter", daemon=True)
        self._thread.start()

    def when(self, event: Event, done: Callable[[], None]) -> None:
        """Call done() on the loop after the event, in the order of these calls."""
        self._queue.put((event, done))

    @property
    def waiting_seconds(self) -> float:
        """How long the event waited for now has been waited for."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End the thread after the events it was given."""
        self._queue.put(None)

    def _wait(self) -> None:
        while (item := self._queue.get()) is not None:
            event, done = item
            self._since = time.monotonic()
            try:
                event.synchronize()
            except Exception as error:
                done = _raiser(error)
            self._since = None
            try:
                self._deliver(done)
            except RuntimeError:  # the loop has ended, and everything with it
                return


def _raiser(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
