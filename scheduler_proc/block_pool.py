"""Which KV blocks are free, and how many block tables refer to each of the others."""

from __future__ import annotations

import numpy as np

from ipc.arena import I32


class BlockPool:
    """A stack of free block ids and a reference count per block.

    A block is in one of three states: free (on the stack, refs 0, not cached), used (refs > 0), or evictable (refs 0, cached: only the
    prefix tree holds it). Whoever takes a block owns one reference to it and must release it once. `cached` is written by the prefix
    cache through `set_cached` and `drop_cached` alone.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.refs: I32 = np.zeros(num_blocks, np.int32)
        self.cached = np.zeros(num_blocks, np.bool_)
        self._stack: I32 = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self.num_free = num_blocks
        self.num_evictable = 0

    @property
    def num_available(self) -> int:
        """Free blocks and those that eviction would free."""
        return self.num_free + self.num_evictable

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free - self.num_evictable

    def take(self, count: int) -> I32:
        """int32[count] free blocks, each with one reference. Raises IndexError if fewer are free (evict first)."""
        left = self.num_free - count
        if left < 0:
            raise IndexError(f"{count} blocks wanted, {self.num_free} free")
        # A copy, since the next release writes where these ids stood.
        blocks = self._stack[left : self.num_free].copy()
        self.num_free = left
        self.refs[blocks] = 1
        return blocks

    def share(self, blocks: I32) -> None:
        """One more reference to each of these distinct used or evictable blocks."""
        counts = self.refs[blocks]
        self.num_evictable -= int(np.count_nonzero(counts == 0))
        counts += 1
        self.refs[blocks] = counts

    def release(self, blocks: I32) -> None:
        """One reference less to each of these distinct used blocks; uncached ones without any become free."""
        counts = self.refs[blocks]
        counts -= 1
        self.refs[blocks] = counts
        idle = blocks[counts == 0]
        kept = self.cached[idle]
        num_kept = int(np.count_nonzero(kept))
        self.num_evictable += num_kept
        self._push(idle[~kept] if num_kept else idle)

    def set_cached(self, block: int) -> None:
        """The prefix tree now holds this used block."""
        self.cached[block] = True

    def drop_cached(self, blocks: I32) -> None:
        """The prefix tree holds these distinct blocks no more; those without references become free."""
        self.cached[blocks] = False
        idle = blocks[self.refs[blocks] == 0]
        self.num_evictable -= len(idle)
        self._push(idle)

    def _push(self, blocks: I32) -> None:
        end = self.num_free + len(blocks)
        self._stack[self.num_free : end] = blocks
        self.num_free = end

    def validate(self) -> None:
        """Raise AssertionError unless stack, counts and flags tell the same story."""
        free = self._stack[: self.num_free]
        on_stack = np.zeros(self.num_blocks, np.bool_)
        on_stack[free] = True
        assert np.count_nonzero(on_stack) == self.num_free, "a block is twice on the free stack"
        assert (self.refs >= 0).all(), "negative reference count"
        assert np.array_equal(on_stack, (self.refs == 0) & ~self.cached), "the free stack is not exactly the blocks nobody holds"
        assert self.num_evictable == np.count_nonzero((self.refs == 0) & self.cached), "wrong count of evictable blocks"
