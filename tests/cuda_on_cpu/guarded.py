"""Tensors that end at a page that may not be touched, so that an access past the end is an error at once."""

from __future__ import annotations

import ctypes

import torch

GUARD_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that ends at a page that may not be touched, and whose memory is never freed."""
    tensor = tensor.contiguous()
    size = tensor.numel() * tensor.element_size()
    room = -(-max(size, 1) // GUARD_PAGE) * GUARD_PAGE
    start = _libc.mmap(None, room + GUARD_PAGE, 3, 0x22, -1, 0)  # readable and writable; private and of no file
    _libc.mprotect(start + room, GUARD_PAGE, 0)
    offset = (room - size) // 16 * 16  # a GPU's allocations are aligned too; up to 15 bytes lie between the end and the page
    memory = (ctypes.c_char * room).from_address(start)
    copy = torch.frombuffer(memory, dtype=torch.uint8)[offset : offset + size].view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    return copy
