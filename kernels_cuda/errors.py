"""What can go wrong with a kernel."""

from __future__ import annotations


class KernelError(RuntimeError):
    """A kernel cannot be built or launched here; the message says what to do."""


class UnsupportedShape(KernelError):
    """The kernel exists, but not for this head size, dtype or alignment."""
