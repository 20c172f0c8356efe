"""GPU ranks over NCCL, through CuPy's binding. Everything is launched on torch's current stream and can be recorded in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_workers.collectives import Collectives
from ipc.errors import ConfigError

_DTYPES = {
    torch.bfloat16: "NCCL_BFLOAT16",
    torch.float16: "NCCL_FLOAT16",
    torch.float32: "NCCL_FLOAT32",
    torch.int32: "NCCL_INT32",
    torch.int64: "NCCL_INT64",
}


class NCCLCollectives(Collectives):
    """unique_id: rank 0's `new_id()`, the same on every rank. stream: the raw handle of the stream to launch on now."""

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
        return int(getattr(self._nccl, _DTYPES[x.dtype]))


def join(rank: int, size: int, unique_id: bytes) -> NCCLCollectives:
    """Rank `rank` of a group whose ranks all have this id; blocks until they have joined. Raises ConfigError without NCCL."""
    return NCCLCollectives(rank, size, _binding(), unique_id, lambda: torch.cuda.current_stream().cuda_stream)


def new_id() -> bytes:
    """An id for a new group, made by its rank 0. Raises ConfigError without NCCL."""
    return bytes(_binding().get_unique_id())


def _binding() -> Any:
    from cupy.cuda import nccl

    if not nccl.available:
        raise ConfigError("--tensor-parallel-size: CuPy finds no NCCL, over which GPUs talk; pip install nvidia-nccl-cu13")
    return nccl
