"""Gives requests their KV blocks and takes them back: joins the pool and the prefix tree.

Invariant while a request runs: the first `path_len` blocks of its table are exactly the path from the tree's root to `request.node`, which
it pins; the others are its own. Therefore a node whose block nobody references has no referenced descendants, and
every block counted as evictable can be evicted.
"""

from __future__ import annotations

import numpy as np

from ipc.arena import I32
from scheduler_proc.block_pool import BlockPool
from scheduler_proc.prefix_cache import PrefixCache, PrefixMatch
from scheduler_proc.request import Request

NO_STEP = -1


class KVManager:
    """Blocks of all requests. Tables are int32 views of a row's block ids, owned by the caller and written here."""

    def __init__(self, num_blocks: int, block_size: int, secret: bytes, caching: bool) -> None:
        self.block_size = block_size
        self.caching = caching
        self._secret = secret
        self.reset(num_blocks)

    def reset(self, num_blocks: int) -> None:
        """So many blocks, all of them empty. Only while no request holds any."""
        self.pool = BlockPool(num_blocks)
        self.cache = PrefixCache(self.pool, self._secret)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, request: Request, step: int) -> PrefixMatch:
        """The prefix of a waiting request's tokens that need not be computed in `step`: always less than all of them."""
        if not self.caching or request.skips_cache:
            return PrefixMatch([], None, 0)
        limit = (len(request.tokens) - 1) // self.block_size
        self._extend_keys(request, request.tokens.data.cast("B"), limit)
        return self.cache.match(request.keys, limit, step)

    def needs_any(self, request: Request, computing: list[tuple[int, bytes]]) -> bool:
        """Whether the prefix of a request that was looked up before has one of these blocks (place in the prefix, key)."""
        keys = request.keys
        return not request.skips_cache and any(at < len(keys) and keys[at] == key for at, key in computing)

    def fits(self, match: PrefixMatch, num_blocks: int, spare: int) -> bool:
        """Whether a table of `num_blocks` that starts with the match can be had with `spare` blocks left over."""
        pool = self.pool
        new = num_blocks - len(match.blocks)
        if pool.num_available < new + spare:
            return False
        idle = int(np.count_nonzero(pool.refs[match.blocks] == 0)) if match.blocks and pool.num_evictable else 0
        return pool.num_available - idle >= new + spare

    def start(self, request: Request, match: PrefixMatch, table: I32) -> None:
        """Fill the whole table (its length is the number of blocks wanted, which must fit)."""
        hits = len(match.blocks)
        if match.node is not None:
            table[:hits] = match.blocks
            self.pool.share(table[:hits])
            self.cache.pin(match.node)
        request.node, request.path_len, request.num_shared, request.path_open = match.node, hits, hits, self.caching
        if not self.make_free(len(table) - hits):
            raise AssertionError("a request was started that does not fit")
        table[hits:] = self.pool.take(len(table) - hits)

    def make_free(self, count: int) -> bool:
        """Evict until `count` blocks are free; False if there are not as many (then nothing is evicted)."""
        pool = self.pool
        if pool.num_free >= count:
            return True
        if pool.num_available < count:
            return False
        self.cache.evict(count - pool.num_free)
        return pool.num_free >= count

    def forget_unused(self) -> int:
        """Evict every block that no request uses; how many there were."""
        return self.cache.evict(self.pool.num_blocks)

    def publish(self, request: Request, table: I32, tokens: memoryview, num_tokens: int, step: int) -> None:
        """Let later steps read the full blocks of the first `num_tokens` tokens, which `step` and its predecessors compute."""
        num_full = num_tokens // self.block_size
        if not request.path_open or request.path_len >= num_full:
            return
        self._extend_keys(request, tokens, num_full)
        old = node = request.node
        while request.path_len < num_full:
            at = request.path_len
            new = None if node is not None and not node.live else self.cache.insert(node, request.keys[at + 1], int(table[at]), step)
            if new is None:
                # Somebody else computed the same, or our prefix was forgotten: the rest stays private until the request ends.
                request.path_open = False
                break
            node = new
            request.path_len += 1
        if node is not None and node is not old:
            self.cache.pin(node)
            if old is not None:
                self.cache.unpin(old)
            request.node = node

    def finish(self, request: Request, table: I32, tokens: memoryview, num_tokens: int) -> None:
        """Take all blocks back; the full ones of the first `num_tokens` tokens stay in the tree, evictable."""
        last = request.node
        if self.caching and (last is None or last.live):
            num_full = num_tokens // self.block_size
            self._extend_keys(request, tokens, num_full)
            for at in range(request.path_len, num_full):
                key = request.keys[at + 1]
                last = self.cache.find(key) or self.cache.insert(last, key, int(table[at]), NO_STEP)
        self.pool.release(table)
        if request.node is not None:
            self.cache.unpin(request.node)
        if last is not None and last is not request.node:
            self.cache.release_leaf(last)
        request.node, request.path_len, request.path_open = None, 0, False

    def discard(self, request: Request, table: I32) -> None:
        """Take all blocks back and let nobody read what this request computed, nor what was computed from it."""
        self.pool.release(table)
        node = request.node
        if node is not None:
            first = node
            for _ in range(request.path_len - request.num_shared - 1):
                assert first.parent is not None
                first = first.parent
            self.cache.unpin(node)
            if request.path_len > request.num_shared:
                self.cache.forget(first)
        request.node, request.path_len, request.path_open = None, 0, False

    def _extend_keys(self, request: Request, tokens: memoryview, count: int) -> None:
        if not request.keys:
            request.keys.append(self.cache.root_key(request.cache_salt))
        if len(request.keys) <= count:
            self.cache.extend_keys(request.keys, tokens, 4 * self.block_size, count)

    def validate(self) -> None:
        self.pool.validate()
        self.cache.validate()
