"""Are our plain top-level packages really ours? Imports nothing of ours, so that it can be asked before anything else."""

from __future__ import annotations

import importlib.util
import os
import sys

PACKAGES = ("ipc", "frontend", "scheduler_proc", "gpu_workers", "kernels_cpu", "kernels_cuda")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check() -> None:
    """Raise ImportError naming the file when one of our packages resolves to somebody else's module of the same name."""
    for name in PACKAGES:
        origin = _origin(name)
        if origin and os.path.realpath(os.path.dirname(origin)) != os.path.realpath(os.path.join(ROOT, name)):
            raise ImportError(
                f"quire needs its own package {name!r}, but Python finds another module of that name: {origin}. "
                "Rename that file, or run from a directory whose path does not come before quire's."
            )


def _origin(name: str) -> str | None:
    """The file that `import name` runs or has run; None if there is no such module."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    # A folder without __init__.py (a namespace package) has no origin; Python prefers a real package later in the path.
    return spec.origin if spec is not None and spec.origin not in (None, "built-in", "frozen") else None
