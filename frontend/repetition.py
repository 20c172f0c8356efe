"""Notices that an output only repeats itself."""

from __future__ import annotations

from ipc.sampling_params import RepetitionDetectionParams


class RepetitionWatch:
    """Counts, for each pattern length, how many of the last tokens equal the one a pattern before. Looks at each token once."""

    __slots__ = ("_needed", "_runs", "_seen", "_sizes", "found")

    def __init__(self, wanted: RepetitionDetectionParams) -> None:
        self._sizes = range(wanted.min_pattern_size, wanted.max_pattern_size + 1)
        self._needed = [size * (wanted.min_count - 1) for size in self._sizes]
        self._runs = [0] * len(self._sizes)
        self._seen = 0
        self.found = False

    def ends(self, ids: list[int]) -> bool:
        """Whether an output of these tokens, which only grows from call to call, is to end."""
        while self._seen < len(ids) and not self.found:
            self._take(ids, self._seen)
            self._seen += 1
        return self.found

    def _take(self, ids: list[int], at: int) -> None:
        token = ids[at]
        for place, size in enumerate(self._sizes):
            if at < size:
                break
            self._runs[place] = self._runs[place] + 1 if ids[at - size] == token else 0
            if self._runs[place] >= self._needed[place]:
                self.found = True
