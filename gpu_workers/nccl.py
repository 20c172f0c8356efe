"""GPU ranks over NCCL, through CuPy's binding. Everything is launched on torch's current stream and can be recorded in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_workers.collectives import Collectives

_DTYPES = {
    torch.bfloat16: ("NCCL_BFLOAT16", 9),  # the number of nccl.h, for CuPy versions without the name
    torch.float16: ("NCCL_FLOAT16", 6),
    torch.float32: ("NCCL_FLOAT32", 7),
    torch.int32: ("NCCL_INT32", 2),
    torch.int64: ("NCCL_INT64", 4),
}


class NCCLCollectives(Collectives):
    """unique_id: rank 0's `nccl.get_unique_id()`, the same on every rank. stream: the raw handle of the stream to launch on now."""

    def __init__(self, rank: int, size: int, nccl: Any, unique_id: Any, stream: Callable[[], int]) -> None:
        self.rank, self.size = rank, size
        self._nccl, self._stream = nccl, stream
        self._comm = nccl.NcclCommunicator(size, unique_id, rank)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        self._comm.allReduce(x.data_ptr(), x.data_ptr(), x.numel(), self._dtype(x), self._nccl.NCCL_SUM, self._stream())
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        x = x.contiguous()
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        self._comm.allGather(x.data_ptr(), parts.data_ptr(), x.numel(), self._dtype(x), self._stream())
        return parts.transpose(0, 1).reshape(x.shape[0], -1) if self.rank == 0 else None

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        self._comm.broadcast(x.data_ptr(), x.data_ptr(), x.numel(), self._dtype(x), 0, self._stream())
        return x

    def close(self) -> None:
        # Not destroy: that waits for the others, which may be dead.
        self._comm.abort()

    def _dtype(self, x: torch.Tensor) -> int:
        name, number = _DTYPES[x.dtype]
        return int(getattr(self._nccl, name, number))


def join(rank: int, size: int, unique_id: Any) -> NCCLCollectives:
    """Rank `rank` of a group whose ranks all have this id; blocks until they have joined."""
    from cupy.cuda import nccl

    return NCCLCollectives(rank, size, nccl, unique_id, lambda: torch.cuda.current_stream().cuda_stream)


def new_id() -> bytes:
    """An id for a new group, made by its rank 0."""
    from cupy.cuda import nccl

    # A tuple of C chars.
    return bytes(value & 0xFF for value in nccl.get_unique_id())


def id_of(raw: bytes) -> tuple[int, ...]:
    """The id as NCCL's binding takes it."""
    return tuple(value - 256 if value > 127 else value for value in raw)
