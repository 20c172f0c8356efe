"""Named columns side by side in one piece of memory, so that one copy takes all of them to the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 64

Columns = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Layout:
    """Where each column lies. size: bytes of all of them."""

    def __init__(self, columns: Columns) -> None:
        self._places: dict[str, tuple[int, int, tuple[int, ...], torch.dtype]] = {}
        offset = 0
        for name, (shape, dtype) in columns.items():
            size = int(np.prod(shape)) * dtype.itemsize
            self._places[name] = offset, size, shape, dtype
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        self.size = offset

    def views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns in memory uint8[at least size]."""
        return {name: memory[offset : offset + size].view(dtype).view(shape) for name, (offset, size, shape, dtype) in self._places.items()}


def pack(columns: Mapping[str, npt.NDArray[np.generic]], pinned: torch.Tensor) -> Layout:
    """Write the columns into page-locked memory uint8[at least packed_size(columns)]; where they are."""
    layout = _layout_of(columns)
    for name, view in layout.views(pinned).items():
        view.numpy()[...] = columns[name]
    return layout


def packed_size(columns: Mapping[str, npt.NDArray[np.generic]]) -> int:
    """Bytes that `pack` needs."""
    return _layout_of(columns).size


def _layout_of(columns: Mapping[str, npt.NDArray[np.generic]]) -> Layout:
    return Layout({name: (column.shape, torch.from_numpy(np.empty(0, column.dtype)).dtype) for name, column in columns.items()})
