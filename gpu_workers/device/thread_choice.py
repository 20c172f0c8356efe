"""How many threads a step gets: one or all, as steps of its size have taken less time.

A step is dozens of small products, after each of which the threads wait for one another. Whether that pays depends on the machine, and on
what else wants its cores: beside a busy frontend and scheduler, a step of 15 ms is done sooner by one thread (docs/benchmarks.md). So both
are tried now and then and the better one is kept: a bandit with two arms for each size. A try is a run of steps, of which the later ones
count: what the others have put off while all threads were busy they do in the first steps with fewer.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

# Outside of these, in seconds of one core, there is nothing to learn.
LEAST, MOST = 0.001, 0.04
# A first guess, where one core does a step in less than this, is one thread.
WORTH_THREADS = 0.003
# The other choice is tried after so many steps, again after twice as many, and so on up to so many: in a run of steps whose second half
# counts, unless the first ones all take so much more that the rest can be spared.
FIRST_PAUSE, LAST_PAUSE, RUN, GLANCE, HOPELESS = 16, 256, 8, 2, 1.4
# All threads must take less than this share of one's time: what they save less is not worth the cores that they keep from other processes.
WORTH_IT = 0.85
REMEMBER = 7  # steps of the present choice


class ThreadChoice:
    """Ask `choose` before a step and tell `took` after it."""

    def __init__(self, threads: int, learns: bool = True) -> None:
        """learns: False where a step's time says nothing of this choice; then the first guess stands."""
        self._threads, self._learns = threads, learns
        self._sizes: dict[int, _Size] = {}
        self._now: tuple[_Size, float] | None = None

    def choose(self, alone: float) -> int:
        """Threads for a step that one core would do in about `alone` seconds."""
        self._now = None
        if self._threads == 1 or alone < LEAST:
            return 1
        if alone > MOST or not self._learns:
            return self._threads if alone >= WORTH_THREADS else 1
        key = int(math.log2(alone / LEAST))
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(int(alone >= WORTH_THREADS))
        self._now = size, alone
        return self._threads if size.next() else 1

    def took(self, seconds: float) -> None:
        """The step that was asked for last has taken so long."""
        if self._now is not None:
            size, alone = self._now
            size.took(seconds / alone)
            self._now = None


class _Size:
    """Steps of one octave: which arm they take, and times, relative to the estimate, which differs between them."""

    def __init__(self, arm: int) -> None:
        self._arm = arm
        self._times: deque[float] = deque(maxlen=REMEMBER)
        self._tried: list[float] | None = None  # a run of the other arm, while there is one
        self._pause = self._left = FIRST_PAUSE

    def next(self) -> int:
        if self._tried is None:
            self._left -= 1
            if self._left >= 0 or not self._times:
                return self._arm
            self._tried = []
        return 1 - self._arm

    def took(self, time: float) -> None:
        if self._tried is None:
            self._times.append(time)
            return
        self._tried.append(time)
        mine, count = median(self._times), len(self._tried)
        late = self._tried[RUN // 2 :]
        if count == RUN and median(late) < mine * (1 / WORTH_IT if self._arm else WORTH_IT):
            self._arm = 1 - self._arm
            self._times = deque(late, REMEMBER)
            self._pause = FIRST_PAUSE
        elif count == RUN or (count == GLANCE and min(self._tried) > HOPELESS * mine):
            self._pause = min(2 * self._pause, LAST_PAUSE)
        else:
            return
        self._tried, self._left = None, self._pause
