"""One log line format for every process: time, level, process name, message; to stderr, so systemd and containers collect it."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")


def configure(process_name: str, level: str = "info") -> None:
    """Route the root logger to stderr with this process's name in each line; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s.%(msecs)03d %(levelname).1s {process_name}: %(message)s", datefmt="%H:%M:%S"))
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Log from this severity on."""
    logging.getLogger().setLevel(level.upper())
