"""The prefix tree against a dictionary from token prefixes to blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler_proc.block_pool import BlockPool
from scheduler_proc.prefix_cache import PrefixCache, RadixNode

BLOCK = 2
SIZE = 24
SECRET = b"k" * 16


def keys_of(cache: PrefixCache, tokens: list[int], salt: str = "") -> list[bytes]:
    keys = [cache.root_key(salt)]
    cache.extend_keys(keys, np.array(tokens, np.int32).data.cast("B"), 4 * BLOCK, len(tokens) // BLOCK)
    return keys


class TreeMachine(RuleBasedStateMachine):
    """model: prefix -> block. used: prefix -> last use. paths: what is pinned, with its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.cache = PrefixCache(self.pool, SECRET)
        self.model: dict[tuple[int, ...], int] = {}
        self.paths: list[tuple[tuple[int, ...], RadixNode, np.ndarray]] = []

    def longest(self, tokens: list[int]) -> int:
        count = 0
        while count < len(tokens) // BLOCK and tuple(tokens[: (count + 1) * BLOCK]) in self.model:
            count += 1
        return count

    @rule(tokens=st.lists(st.integers(0, 1), min_size=BLOCK, max_size=8).map(lambda t: t[: len(t) // BLOCK * BLOCK]))
    def run_request(self, tokens: list[int]) -> None:
        """Match, pin, take the rest and insert it: the life of a request until it holds everything."""
        keys, total = keys_of(self.cache, tokens), len(tokens) // BLOCK
        match = self.cache.match(keys, total, 0)
        hits = self.longest(tokens)
        assert match.blocks == [self.model[tuple(tokens[: at * BLOCK])] for at in range(1, hits + 1)]
        assert not match.cut_at
        if match.node is not None:
            self.pool.share(np.array(match.blocks, np.int32))
            self.cache.pin(match.node)
        missing = total - hits
        if self.pool.num_free < missing:
            self.evict(missing - self.pool.num_free)
        if self.pool.num_free < missing:
            if match.node is not None:
                self.pool.release(np.array(match.blocks, np.int32))
                self.cache.unpin(match.node)
            return
        new = self.pool.take(missing)
        node = match.node
        for at in range(hits, total):
            child = self.cache.insert(node, keys[at + 1], int(new[at - hits]), -1)
            assert child is not None
            assert self.cache.insert(node, keys[at + 1], int(new[at - hits]), -1) is None, "inserted twice"
            self.model[tuple(tokens[: (at + 1) * BLOCK])] = int(new[at - hits])
            node = child
        assert node is not None
        if node is not match.node:
            self.cache.pin(node)
            if match.node is not None:
                self.cache.unpin(match.node)
        self.paths.append((tuple(tokens), node, np.concatenate([np.array(match.blocks, np.int32), new])))

    @precondition(lambda self: self.paths)
    @rule(data=st.data())
    def end_request(self, data: st.DataObject) -> None:
        _, node, blocks = self.paths.pop(data.draw(st.integers(0, len(self.paths) - 1)))
        self.pool.release(blocks)
        self.cache.unpin(node)

    @rule(count=st.integers(1, 4))
    def evict(self, count: int) -> None:
        before = set(self.model.values())
        freed = self.cache.evict(count)
        in_use = {block for _, _, blocks in self.paths for block in blocks.tolist()}
        evictable = {prefix for prefix, block in self.model.items() if block not in in_use}
        assert freed == min(count, len(evictable))
        left = set(self.cache.cached_blocks().tolist())
        gone = {prefix for prefix, block in self.model.items() if block in before - left}
        assert len(gone) == freed and gone <= evictable, "evicted what is in use"
        for prefix in gone:
            del self.model[prefix]
        assert all(len(prefix) == BLOCK or prefix[:-BLOCK] in self.model for prefix in self.model), "a child outlived its parent"

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(sorted(self.model)))
        node = self.cache.find(keys_of(self.cache, list(prefix))[-1])
        assert node is not None
        self.cache.forget(node)
        for other in [other for other in self.model if other[: len(prefix)] == prefix]:
            del self.model[other]

    @invariant()
    def agrees(self) -> None:
        self.pool.validate()
        self.cache.validate()
        assert set(self.cache.cached_blocks().tolist()) == set(self.model.values())


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, derandomize=True)


def chain(cache: PrefixCache, pool: BlockPool, tokens: list[int], step: int = -1) -> RadixNode:
    """Insert all of these tokens as a request that is over."""
    keys, node = keys_of(cache, tokens), None
    for key in keys[1:]:
        found = cache.find(key)
        if found is None:
            block = pool.take(1)
            found = cache.insert(node, key, int(block[0]), step)
            pool.release(block)
        node = found
    assert node is not None
    cache.release_leaf(node)
    return node


def test_the_least_recently_used_leaf_goes_first_and_then_its_parent() -> None:
    pool = BlockPool(10)
    cache = PrefixCache(pool, SECRET)
    old = chain(cache, pool, [1, 1, 2, 2])
    new = chain(cache, pool, [3, 3, 4, 4])
    cache.pin(old)
    cache.unpin(old)  # used again: now the other is older
    assert cache.evict(1) == 1 and not new.live and old.live
    assert cache.evict(1) == 1 and cache.find(keys_of(cache, [3, 3])[1]) is None
    assert cache.evict(5) == 2 and len(cache) == 0 and pool.num_free == 10


def test_keys_depend_on_secret_salt_parent_and_tokens() -> None:
    pool = BlockPool(4)
    cache, other = PrefixCache(pool, SECRET), PrefixCache(pool, b"x" * 16)
    base = keys_of(cache, [1, 2, 3, 4])
    assert base == keys_of(cache, [1, 2, 3, 4])
    assert base[1:] != keys_of(other, [1, 2, 3, 4])[1:]
    assert set(base).isdisjoint(keys_of(cache, [1, 2, 3, 4], salt="tenant"))
    assert keys_of(cache, [0, 2, 3, 4])[2] != base[2]
    assert keys_of(cache, [1, 2, 3, 5])[:2] == base[:2]


def test_what_a_step_computes_is_not_read_in_it() -> None:
    pool = BlockPool(8)
    cache = PrefixCache(pool, SECRET)
    chain(cache, pool, [1, 1])
    chain(cache, pool, [1, 1, 2, 2], step=5)
    keys = keys_of(cache, [1, 1, 2, 2, 3, 3])
    now, later = cache.match(keys, 3, 5), cache.match(keys, 3, 6)
    assert (len(now.blocks), now.cut_at) == (1, 2)
    assert (len(later.blocks), later.cut_at) == (2, 0)


def test_validate_finds_what_is_wrong() -> None:
    pool = BlockPool(8)
    cache = PrefixCache(pool, SECRET)
    node = chain(cache, pool, [1, 1, 2, 2])
    assert node.parent is not None
    node.parent.num_children = 0
    with pytest.raises(AssertionError):
        cache.validate()


def test_a_large_tree_costs_no_more_per_block() -> None:
    """Inserting and evicting, 2,000 blocks and 100,000: what looked at the whole tree each time would take 50 times as long a block."""

    def per_block(chains: int) -> tuple[float, float]:
        pool = BlockPool(chains * 100)
        cache = PrefixCache(pool, SECRET)
        rng = np.random.default_rng(0)
        began = time.process_time()
        for _ in range(chains):
            chain(cache, pool, rng.integers(0, 1000, 100 * BLOCK).tolist())
        inserted = time.process_time()
        assert cache.evict(chains * 50) == chains * 50
        return (inserted - began) / chains, (time.process_time() - inserted) / chains

    small, large = np.median([per_block(20) for _ in range(9)], axis=0), per_block(1000)
    assert (large < 10 * small).all(), (small, large)


def test_forgetting_takes_the_subtree_and_looks_at_nothing_else() -> None:
    class Unlisted(dict[bytes, RadixNode]):
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("the whole tree was walked")

        items = values = keys = __iter__  # type: ignore[assignment]

    pool = BlockPool(16)
    cache = PrefixCache(pool, SECRET)
    chain(cache, pool, [1, 1, 2, 2])
    wrong = chain(cache, pool, [1, 1, 3, 3])
    leaves = [chain(cache, pool, [1, 1, 3, 3, last, last, 9, 9]) for last in (4, 5, 6)]
    kept = chain(cache, pool, [1, 1, 7, 7])
    cache._nodes = Unlisted(cache._nodes)
    cache.forget(wrong)
    cache._nodes = dict(dict.items(cache._nodes))
    cache.validate()
    assert not wrong.live and not any(leaf.live for leaf in leaves) and kept.live
    assert len(cache) == 3 and pool.num_free == 13
