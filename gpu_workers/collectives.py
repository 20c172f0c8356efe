"""What the ranks of one tensor-parallel group say to each other.

A group of one costs nothing: its methods give back what they got. Several CPU ranks meet through a file in the runtime directory
(never a listening TCP store) and talk over gloo on the loopback interface.
"""

from __future__ import annotations

import datetime
import os

import torch

from ipc.errors import ConfigError

RENDEZVOUS_SECONDS = 300


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

    Every rank of one group life must pass the same `rendezvous` path, which no earlier group has used.
    """

    def __init__(self, rank: int, size: int, rendezvous: str) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch.distributed as dist

        self.rank, self.size, self._dist = rank, size, dist
        store = dist.FileStore(rendezvous, size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=RENDEZVOUS_SECONDS))

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
    """The group of `size` ranks that meet at the file `rendezvous`; blocks until all are there."""
    if size == 1:
        return Collectives()
    if backend != "gloo":
        raise ConfigError(f"no collectives for {backend} in this version")
    return GlooCollectives(rank, size, rendezvous)
