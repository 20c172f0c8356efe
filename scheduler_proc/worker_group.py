"""The scheduler's handle on its workers: who they are, whether all of them stand, and the doorbells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from ipc.messages import KVReady, KVSize, Masks, StepPlan, WorkerReady

log = logging.getLogger(__name__)


class Sender(Protocol):
    """What the group needs of a channel."""

    def send(self, message: msgspec.Struct, peer: str = "") -> bool: ...

    def forget(self, peer: str) -> None: ...


class WorkerGroup:
    """Workers of ranks 0 .. size-1, from their loading until they are lost.

    When all ranks have said WorkerReady each is told the common number of blocks; when all have answered KVReady, `on_standing(num_blocks)`
    is called and plans may flow. num_blocks: as configured, 0 for the most that all can hold.
    """

    def __init__(self, channel: Sender, size: int, num_blocks: int, on_standing: Callable[[int], None]) -> None:
        self._channel = channel
        self._size = size
        self._wanted = num_blocks
        self._on_standing = on_standing
        self._ready: dict[int, tuple[str, int]] = {}
        self._allocated: set[int] = set()
        self._dead: set[str] = set()
        self.num_blocks = 0
        self.standing = False
        self.num_stray = 0

    def ready(self, peer: str, message: WorkerReady) -> bool:
        """A worker has loaded. True if it replaces one that had not been known to be dead: then that one's work is lost."""
        if not 0 <= message.rank < self._size or peer in self._dead:
            log.warning("ignored worker %s of rank %d: it is dead, or no such rank is expected", peer, message.rank)
            self.num_stray += 1
            return False
        known = self._ready.get(message.rank)
        replaced = known is not None and known[0] != peer
        if replaced:
            assert known is not None
            self.lost(known[0])
        self._ready[message.rank] = (peer, message.num_blocks)
        if len(self._ready) == self._size:
            most = min(num_blocks for _, num_blocks in self._ready.values())
            self.num_blocks = min(self._wanted or most, most)
            for identity, _ in self._ready.values():
                self._channel.send(KVSize(self.num_blocks), identity)
        return replaced

    def allocated(self, peer: str, message: KVReady) -> None:
        """A worker's KV cache stands."""
        if self._ready.get(message.rank, ("", 0))[0] != peer or self.standing:
            self.num_stray += 1
            return
        self._allocated.add(message.rank)
        if len(self._allocated) == self._size == len(self._ready):
            self.standing = True
            self._on_standing(self.num_blocks)

    def lost(self, identity: str) -> bool:
        """A worker is dead. The others cannot go on without it, and all must come back anew; whether it was one of this group."""
        self._dead.add(identity)
        self._channel.forget(identity)
        if identity not in [known for known, _ in self._ready.values()]:
            return False
        self._dead.update(known for known, _ in self._ready.values())
        self._ready.clear()
        self._allocated.clear()
        self.standing = False
        return True

    def reports(self, peer: str) -> bool:
        """Whether step results are this peer's to give: rank 0's while the group stands."""
        return self.standing and self._ready[0][0] == peer

    def ring(self, step: int, slot: int) -> None:
        """Tell every worker that the plan of `step` is complete."""
        self._tell(StepPlan(step, slot))

    def ring_masks(self, step: int) -> None:
        """Tell every worker that the masks of `step` are complete; its plan's doorbell has rung."""
        self._tell(Masks(step))

    def _tell(self, doorbell: msgspec.Struct) -> None:
        for identity, _ in self._ready.values():
            self._channel.send(doorbell, identity)
