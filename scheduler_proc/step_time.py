"""How long a step takes, learned from the steps that were, and how many tokens of prompts fit into the time that it may take."""

from __future__ import annotations

# A step with running streams in it computes no fewer tokens of prompts than this, however long its decode rows alone take.
LEAST_TOKENS = 64
# Steps of fewer tokens of prompts say little of what a token takes.
LEAST_SAMPLE = 16
SMOOTHING = 0.3
# One step can move what is thought of all by this factor: some take long for reasons that have passed (code that is compiled, memory that
# is touched for the first time, another process).
MOST_CHANGE = 2.0


class StepTime:
    """seconds_per_token of prompts and decode_seconds, what a step of the running rows takes without them; 0 while nothing is known.

    A linear model of both, followed by exponential smoothing: context lengths and the number of rows change slowly against steps.
    """

    def __init__(self, target_seconds: float) -> None:
        """target_seconds: what a step shall take at most; 0: no limit."""
        self._target = target_seconds
        self.seconds_per_token = 0.0
        self.decode_seconds = 0.0

    def observe(self, num_prompt: int, num_decodes: int, seconds: float) -> None:
        """A step of so many tokens of prompts and so many decode rows took `seconds` on the workers."""
        if not self._target or seconds <= 0:
            return
        if not num_prompt:
            self.decode_seconds = _towards(self.decode_seconds, seconds)
        elif num_prompt >= LEAST_SAMPLE:
            rest = max(seconds - (self.decode_seconds if num_decodes else 0.0), seconds / 4)
            self.seconds_per_token = _towards(self.seconds_per_token, rest / num_prompt)

    def tokens(self, num_decodes: int, budget: int, share: float = 1.0) -> int:
        """Tokens of prompts, at most `budget`, that a step of so many decode rows shall have. share: of the time that a step may take."""
        if not self._target or not self.seconds_per_token:
            return budget
        left = self._target * share - (self.decode_seconds if num_decodes else 0.0)
        return min(budget, max(LEAST_TOKENS, int(left / self.seconds_per_token)))


def _towards(known: float, seen: float) -> float:
    if not known:
        return seen
    return known + SMOOTHING * (min(max(seen, known / MOST_CHANGE), known * MOST_CHANGE) - known)
