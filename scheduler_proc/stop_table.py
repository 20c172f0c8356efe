"""Which token ids end some live request: a cheap first look at a step's tokens; the request itself is asked only on a hit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ipc.arena import I32


class StopTable:
    """A flag per token id, and one for everything outside the vocabulary, which is always set."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = np.uint32(vocab_size)
        self._owners = np.zeros(vocab_size + 1, np.int32)
        self._flags: npt.NDArray[np.bool_] = np.zeros(vocab_size + 1, np.bool_)
        self._flags[vocab_size] = True

    def add(self, ids: Iterable[int]) -> None:
        """A request that stops at these ids is live."""
        for token in ids:
            self._owners[token] += 1
            self._flags[token] = True

    def remove(self, ids: Iterable[int]) -> None:
        """It is not any more."""
        for token in ids:
            self._owners[token] -= 1
            self._flags[token] = self._owners[token] > 0

    def hits(self, tokens: I32) -> npt.NDArray[np.bool_]:
        """bool[n]: the tokens that may end a request or are no token ids at all."""
        return self._flags[np.minimum(tokens.view(np.uint32), self._vocab_size)]
