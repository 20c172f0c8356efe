"""The block pool against a model of sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler_proc.block_pool import BlockPool

SIZE = 12


class PoolMachine(RuleBasedStateMachine):
    """owners: references as the pool should count them; cached: what the prefix tree would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.owners = dict.fromkeys(range(SIZE), 0)
        self.cached: set[int] = set()
        self.held: list[np.ndarray] = []

    def free(self) -> set[int]:
        return {block for block, count in self.owners.items() if not count and block not in self.cached}

    @rule(count=st.integers(0, SIZE + 1))
    def take(self, count: int) -> None:
        free = self.free()
        if count > len(free):
            with pytest.raises(IndexError):
                self.pool.take(count)
            return
        blocks = self.pool.take(count)
        assert set(blocks.tolist()) <= free and len(set(blocks.tolist())) == count
        for block in blocks.tolist():
            self.owners[block] = 1
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)
        for block in blocks.tolist():
            self.owners[block] -= 1

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        known = sorted({block for block, count in self.owners.items() if count} | self.cached)
        if not known:
            return
        blocks = np.array(data.draw(st.lists(st.sampled_from(known), unique=True)), np.int32)
        self.pool.share(blocks)
        for block in blocks.tolist():
            self.owners[block] += 1
        self.held.append(blocks)

    @precondition(lambda self: any(self.owners.values()))
    @rule(data=st.data())
    def cache(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([block for block, count in self.owners.items() if count]))
        self.pool.set_cached(block)
        self.cached.add(block)

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.cached)), unique=True))
        self.pool.drop_cached(np.array(blocks, np.int32))
        self.cached -= set(blocks)

    @invariant()
    def agrees(self) -> None:
        self.pool.validate()
        assert self.pool.refs.tolist() == list(self.owners.values())
        assert self.pool.num_free == len(self.free())
        assert self.pool.num_evictable == sum(1 for block in self.cached if not self.owners[block])
        assert self.pool.num_used == sum(1 for count in self.owners.values() if count)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_a_release_is_not_overwritten_by_what_was_taken() -> None:
    pool = BlockPool(4)
    first = pool.take(2)
    pool.release(pool.take(2))
    kept = first.copy()
    pool.release(first)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("break_it", ["refs", "cached", "stack"])
def test_validate_finds_what_is_wrong(break_it: str) -> None:
    pool = BlockPool(4)
    blocks = pool.take(2)
    if break_it == "refs":
        pool.refs[blocks[0]] = 0
    elif break_it == "cached":
        pool.cached[pool._stack[0]] = True
    else:
        pool._stack[0] = pool._stack[1]
    with pytest.raises(AssertionError):
        pool.validate()
