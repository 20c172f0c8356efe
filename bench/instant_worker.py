"""A worker without a model for benchmarks of the engine around it: every row of a plan gets its token in a few vector operations."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.step_stamps import MAX_STEPS
from frontend.tokenizer import Tokenizer
from ipc.arena import PlanHeader, ResultHeader
from ipc.messages import StepPlan, StepResult
from tests.fake_worker import FakeWorker


class InstantWorker(FakeWorker):
    """All rows of step s get token words[s % len(words)], so that a client can tell from a text which step it came from.

    pace: seconds from one step to the next, 0 for as fast as plans come. rung, sampled: int64[steps], CLOCK_MONOTONIC nanoseconds at
    which a step's doorbell was read here and its result was sent.
    """

    def __init__(self, spec: Any, words: np.ndarray, pace: float = 0.0, num_blocks: int = 65_536) -> None:
        super().__init__(spec, num_blocks)
        self._words, self._pace = words, pace
        self._next = 0.0
        self.rung, self.sampled = np.zeros(MAX_STEPS, np.int64), np.zeros(MAX_STEPS, np.int64)

    def _step(self, message: StepPlan) -> None:
        step = message.step % MAX_STEPS
        self.rung[step] = time.monotonic_ns()
        plan, result = self._arena.plans[message.slot], self._arena.results[message.slot]
        plan.check_step(message.step)
        count = int(plan.header[PlanHeader.NUM_ROWS])
        if self._pace:
            left = self._next - time.monotonic()
            if left > 0:
                time.sleep(left)
            self._next = max(time.monotonic(), self._next) + self._pace
        result.tokens[:count] = self._words[message.step % len(self._words)]
        result.flags[:count] = 0
        result.header[ResultHeader.NUM_ROWS], result.header[ResultHeader.STEP] = count, message.step
        self.steps += 1
        self.sampled[step] = time.monotonic_ns()
        self._channel.send(StepResult(message.step, message.slot))


WIDTH = 4


def words(tokenizer: Tokenizer, count: int = 256) -> np.ndarray:
    """int32[count] tokens whose texts are distinct and WIDTH letters long, so that joined texts can be told apart."""
    found: dict[str, int] = {}
    for token in range(300, 4096):
        text = tokenizer.decode([token])
        if len(text) == WIDTH and text.isascii() and text.strip().isalpha():
            found.setdefault(text, token)
    assert len(found) >= count, f"only {len(found)} such words"
    return np.array(list(found.values())[:count], np.int32)
