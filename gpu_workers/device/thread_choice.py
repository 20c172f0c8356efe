"""How many threads a step gets: one or all, as steps of its size have taken less time.

A step is dozens of small products, after each of which the threads wait for one another. Whether that pays depends on the machine, and on
what else wants its cores: beside a busy frontend and scheduler, a step of 15 ms is done sooner by one thread (docs/benchmarks.md). So both
are tried now and then and the better one is kept: a bandit with two arms for each size.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

# Outside of these, in seconds of one core, there is nothing to learn.
LEAST, MOST = 0.001, 0.04
# A first guess, where one core does a step in less than this, is one thread.
WORTH_THREADS = 0.003
# The other choice is tried each so many steps; so many times are remembered of each; and it must be better by so much.
TRY, REMEMBER, BETTER = 32, 7, 0.95


class ThreadChoice:
    """Ask `choose` before a step and tell `took` after it."""

    def __init__(self, threads: int, learns: bool = True) -> None:
        """learns: False where a step's time says nothing of this choice; then the first guess stands."""
        self._threads, self._learns = threads, learns
        self._sizes: dict[int, _Size] = {}
        self._now: tuple[_Size, int, float] | None = None

    def choose(self, alone: float) -> int:
        """Threads for a step that one core would do in about `alone` seconds."""
        self._now = None
        if self._threads == 1 or alone < LEAST:
            return 1
        if alone > MOST or not self._learns:
            return self._threads if alone >= WORTH_THREADS else 1
        key = round(2 * math.log2(alone / LEAST))
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(0 if alone < WORTH_THREADS else 1)
        arm = size.next()
        self._now = size, arm, alone
        return self._threads if arm else 1

    def took(self, seconds: float) -> None:
        """The step that was asked for last has taken so long."""
        if self._now is not None:
            size, arm, alone = self._now
            size.took(arm, seconds / alone)
            self._now = None


class _Size:
    """Steps of one size: times of both arms, relative to the estimate, which differs a little between them."""

    def __init__(self, arm: int) -> None:
        self._arm = arm
        self._times: tuple[deque[float], deque[float]] = (deque(maxlen=REMEMBER), deque(maxlen=REMEMBER))
        self._steps = 0

    def next(self) -> int:
        self._steps += 1
        return 1 - self._arm if self._steps % TRY == 0 else self._arm

    def took(self, arm: int, time: float) -> None:
        self._times[arm].append(time)
        mine, other = self._times[self._arm], self._times[1 - self._arm]
        # Three tries, so that one lucky step decides nothing.
        if arm != self._arm and len(other) >= 3 and median(other) < BETTER * median(mine):
            self._arm = arm
