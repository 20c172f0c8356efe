"""Which KV blocks hold which tokens: a radix tree over full blocks, so that requests that begin alike share them.

One RadixNode per block. A node's key is a keyed hash over its parent's key and its own tokens, so one dictionary look-up per block walks
the tree and equal keys mean equal prefixes (the automatic prefix caching of vLLM; the tree with leaf-first eviction is
SGLang's RadixAttention, arXiv:2312.07104). The hash is keyed with a secret of this process life, and a chain starts from the request's
identity (cache salt), so nobody can compute or probe for somebody else's keys.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import msgspec
import numpy as np

from ipc.arena import I32
from scheduler_proc.block_pool import BlockPool

KEY_BYTES = 16
_HEAP_SLACK = 1024
_NONE = -1


class RadixNode(msgspec.Struct, gc=False, eq=False):
    """One cached block. `step` is the step that computes it: requests of that same step may not read it yet.

    pins: requests whose path ends here. It protects the whole path, because only leaves are detached. live: still in the tree.
    """

    block: int
    key: bytes
    parent: RadixNode | None
    step: int
    num_children: int = 0
    pins: int = 0
    stamp: int = 0
    live: bool = True


class PrefixMatch(msgspec.Struct, gc=False, eq=False):
    """The longest cached prefix: blocks in order, and the last node (None: no hit).

    cut_at: if the next block is in the tree and only being computed, its place in the prefix (from 1); else 0.
    """

    blocks: list[int]
    node: RadixNode | None
    cut_at: int


class PrefixCache:
    """The tree. It holds a block by its `cached` flag in the pool; requests hold theirs by references.

    Whoever pins a node must unpin it once, with all blocks of the path referenced in the pool as long as the pin lasts.
    """

    def __init__(self, pool: BlockPool, secret: bytes) -> None:
        self._pool = pool
        self._secret = secret
        self._nodes: dict[bytes, RadixNode] = {}
        self._by_block: list[RadixNode | None] = [None] * pool.num_blocks
        # The children of each node as a doubly linked list over block ids. References between nodes would be cycles, which nothing
        # would ever free: nodes are not known to the garbage collector.
        self._first_child, self._next, self._previous = (array("i", [_NONE]) * pool.num_blocks for _ in range(3))
        # Leaves that may be evicted as (stamp, block), oldest first; entries that no longer hold are skipped when they surface.
        self._leaves: list[tuple[int, int]] = []
        self._clock = 0
        self.num_evicted = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def root_key(self, salt: str) -> bytes:
        """Key from which the chain of a request of this identity starts."""
        return blake2b(salt.encode(), digest_size=KEY_BYTES, key=self._secret, person=b"root").digest()

    def extend_keys(self, keys: list[bytes], tokens: memoryview, block_bytes: int, count: int) -> None:
        """Append keys until `keys` has the root key and `count` block keys; tokens: the bytes of its int32 tokens."""
        secret, parent = self._secret, keys[-1]
        for at in range((len(keys) - 1) * block_bytes, count * block_bytes, block_bytes):
            parent = blake2b(parent + tokens[at : at + block_bytes], digest_size=KEY_BYTES, key=secret).digest()
            keys.append(parent)

    def match(self, keys: list[bytes], limit: int, step: int) -> PrefixMatch:
        """The longest path along keys[1 .. limit] that was computed before `step`."""
        nodes, node, blocks, cut_at = self._nodes, None, [], 0
        for index in range(1, limit + 1):
            found = nodes.get(keys[index])
            if found is None:
                break
            if found.step == step:
                cut_at = index
                break
            node = found
            blocks.append(found.block)
        return PrefixMatch(blocks, node, cut_at)

    def insert(self, parent: RadixNode | None, key: bytes, block: int, step: int) -> RadixNode | None:
        """Put a used block below `parent`; the new node, or None if the key is in the tree already (with another block)."""
        if key in self._nodes:
            return None
        node = RadixNode(block, key, parent, step)
        if parent is not None:
            parent.num_children += 1
            sibling = self._first_child[parent.block]
            self._first_child[parent.block], self._next[block] = block, sibling
            if sibling != _NONE:
                self._previous[sibling] = block
        self._nodes[key] = node
        self._by_block[block] = node
        self._pool.set_cached(block)
        return node

    def find(self, key: bytes) -> RadixNode | None:
        return self._nodes.get(key)

    def pin(self, node: RadixNode) -> None:
        node.pins += 1

    def unpin(self, node: RadixNode) -> None:
        """The path was used until now, and its blocks have been released. What is left of a path that was forgotten is idle then."""
        node.pins -= 1
        last: RadixNode | None = node
        while last is not None and not last.live:
            last = last.parent
        if last is not None:
            self._touch(last)

    def release_leaf(self, node: RadixNode) -> None:
        """Tell that an unpinned node was just inserted: it may be evicted from now on, if it is a leaf."""
        self._touch(node)

    def _touch(self, node: RadixNode) -> None:
        self._clock += 1
        node.stamp = self._clock
        if node.num_children == 0 and node.pins == 0:
            self._push(node)

    def _push(self, node: RadixNode) -> None:
        if len(self._leaves) > 2 * len(self._nodes) + _HEAP_SLACK:
            self._leaves = [entry for entry in self._leaves if self._evictable(entry)]
            heapq.heapify(self._leaves)
        heapq.heappush(self._leaves, (node.stamp, node.block))

    def _evictable(self, entry: tuple[int, int]) -> bool:
        node = self._by_block[entry[1]]
        if node is None or node.stamp != entry[0] or node.num_children or node.pins:
            return False
        # In use without a pin: below it a path was forgotten while its user runs. It comes back when that user unpins.
        return not self._pool.refs[entry[1]]

    def evict(self, count: int) -> int:
        """Detach up to `count` unpinned leaves, least recently used first; how many blocks became free."""
        evicted: list[int] = []
        while self._leaves and len(evicted) < count:
            entry = heapq.heappop(self._leaves)
            if not self._evictable(entry):
                continue
            node = self._by_block[entry[1]]
            assert node is not None
            self._detach(node)
            evicted.append(node.block)
            parent = node.parent
            if parent is not None and parent.num_children == 0 and parent.pins == 0:
                # A path's inner nodes were used at least as late as its leaf.
                parent.stamp = max(parent.stamp, node.stamp)
                self._push(parent)
        if evicted:
            self._pool.drop_cached(np.array(evicted, np.int32))
            self.num_evicted += len(evicted)
        return len(evicted)

    def forget(self, node: RadixNode) -> None:
        """Detach a node and everything below it, whoever uses it: its content turned out to be wrong."""
        if not node.live:
            return
        found = [node]
        for each in found:  # which grows meanwhile
            found += self._children(each)
        for each in reversed(found):
            self._detach(each)
        self._pool.drop_cached(np.array([each.block for each in found], np.int32))
        parent = node.parent
        if parent is not None and parent.num_children == 0 and parent.pins == 0:
            self._push(parent)

    def _children(self, node: RadixNode) -> Iterator[RadixNode]:
        block = self._first_child[node.block]
        while block != _NONE:
            child = self._by_block[block]
            assert child is not None
            yield child
            block = self._next[block]

    def _detach(self, node: RadixNode) -> None:
        """Take a node without children out of the tree."""
        block, parent = node.block, node.parent
        del self._nodes[node.key]
        self._by_block[block] = None
        node.live = False
        if parent is None:
            return
        parent.num_children -= 1
        after, before = self._next[block], self._previous[block]
        if before != _NONE:
            self._next[before] = after
        else:
            self._first_child[parent.block] = after
        if after != _NONE:
            self._previous[after] = before
        self._next[block] = self._previous[block] = _NONE

    def nodes(self) -> Iterable[RadixNode]:
        """All nodes; a parent comes before its children."""
        return self._nodes.values()

    def cached_blocks(self) -> I32:
        """int32[n]: the blocks the tree holds."""
        return np.array([node.block for node in self._nodes.values()], np.int32)

    def validate(self) -> None:
        """Raise AssertionError unless tree, pool flags and the heap of leaves agree."""
        children: dict[int, int] = {}
        entries = set(self._leaves)
        for key, node in self._nodes.items():
            assert node.live and node.key == key and self._by_block[node.block] is node, "a node under a wrong name"
            if node.parent is not None:
                assert node.parent.live and self._nodes.get(node.parent.key) is node.parent, "a node hangs from a detached one"
                children[id(node.parent)] = children.get(id(node.parent), 0) + 1
        for node in self._nodes.values():
            assert node.num_children == children.get(id(node), 0), "wrong count of children"
            linked = list(self._children(node))
            assert len(linked) == node.num_children and all(child.parent is node for child in linked), "wrong list of children"
            assert node.pins >= 0, "negative pins"
            if node.num_children == 0 and self._pool.refs[node.block] == 0:
                assert node.pins == 0, "a pinned path whose blocks nobody holds"
                assert (node.stamp, node.block) in entries, "an idle leaf that eviction would never find"
        flagged = np.flatnonzero(self._pool.cached)
        assert np.array_equal(np.sort(self.cached_blocks()), flagged), "the pool's cached flags are not the tree's blocks"
