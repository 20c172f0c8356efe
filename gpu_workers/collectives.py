"""What the ranks of one tensor-parallel group say to each other.

A group of one costs nothing: its methods give back what they got. Several ranks meet in the runtime directory (meeting.py; never at a
listening TCP store); CPU ranks then talk over gloo on the loopback interface, GPU ranks over NCCL.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

import torch

from gpu_workers.meeting import MEETING_SECONDS, meet, name_ranks
from ipc.arena import I64, Stat
from ipc.errors import ConfigError

# A rank that has not shown a sign of life for so long does not take part any more.
SILENT_SECONDS = 5.0


class Collectives:
    """A group of one rank, and the base of larger ones."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x over all ranks, on every rank; may change x."""
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        """x [n, w] of every rank side by side, [n, size * w], on rank 0; None elsewhere."""
        return x

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's x on every rank, written into x."""
        return x

    def share(self, total: int, what: str) -> int:
        """This rank's even part of `total`. Raises ConfigError naming `what` if there is none."""
        if total % self.size:
            raise ConfigError(f"tensor_parallel_size {self.size} does not divide the model's {what} ({total})")
        return total // self.size

    def close(self) -> None:
        """Leave the group."""


class GlooCollectives(Collectives):
    """CPU ranks over torch.distributed.

    Every rank of one group life must pass the same `store`, a path that no earlier group has used.
    """

    def __init__(self, rank: int, size: int, store: str) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch.distributed as dist

        self.rank, self.size, self._dist = rank, size, dist
        timeout = datetime.timedelta(seconds=MEETING_SECONDS)
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timeout)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self._dist.all_reduce(x)
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        self._dist.gather(x.contiguous(), parts)
        return torch.cat(parts, dim=1) if parts is not None else None

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        self._dist.broadcast(x, src=0)
        return x

    def close(self) -> None:
        self._dist.destroy_process_group()


def join(rank: int, size: int, backend: str, rendezvous: str) -> Collectives:
    """The group of `size` ranks that meet at the path `rendezvous`, which no earlier group has used; blocks until all are there.

    Raises QuireError naming the ranks that did not come.
    """
    if size == 1:
        return Collectives()
    if backend == "gloo":
        meet(rank, size, rendezvous, lambda: b"")
        return GlooCollectives(rank, size, f"{rendezvous}.gloo")
    from gpu_workers import nccl

    return nccl.join(rank, size, meet(rank, size, rendezvous, nccl.new_id))


def who_is_silent(records: Sequence[I64], now_ns: int) -> str:
    """Why a step does not end, by the ranks' status records: which of them give no sign of life, or else are behind."""
    silent = [rank for rank, record in enumerate(records) if now_ns - record[Stat.HEARTBEAT_NS] > SILENT_SECONDS * 1e9]
    if silent:
        return f"{name_ranks(silent)} gave no sign of life for {SILENT_SECONDS:.0f} s"
    steps = [int(record[Stat.STEPS]) for record in records]
    behind = [rank for rank, count in enumerate(steps) if count < max(steps)]
    return f"{name_ranks(behind)} did not follow (steps done by rank: {steps})" if behind else f"all ranks stand at step {steps[0]}"
