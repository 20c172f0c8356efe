"""What a part of the run shares: its options, the results it leaves behind as they come, and how it ends."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRONG = 3  # exit status of a part that ran to its end and found something wrong
SKIPPED = 4  # nothing could be run; the results say why


class Part:
    """Results of one part, written to `path` after each of them, so that what a time limit cuts off is only what was missing.

    dry: no GPU is used; sizes are tiny, and kernels run in the emulator of tests/cuda_on_cpu. ceilings: what the part of that name found.
    only: part of the names of the cases that are wanted, '' for all.
    """

    def __init__(self, path: Path, dry: bool = False, ceilings: dict[str, float] | None = None, only: str = "") -> None:
        self.path, self.dry, self.ceilings, self.only = path, dry, ceilings or {}, only
        self.results: dict[str, dict[str, Any]] = {}
        self.wrong: list[str] = []
        self.skipped: dict[str, str] = {}
        self._write()

    @property
    def device(self) -> str:
        """torch's name of where tensors live."""
        return "cpu" if self.dry else "cuda"

    def record(self, name: str, /, **figures: Any) -> None:
        """Keep and print one line of figures. Numbers that are not finite become None, which JSON has."""
        kept = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in figures.items()}
        self.results[name] = kept
        print(f"  {name:34s} " + "  ".join(f"{key} {shown(value)}" for key, value in kept.items()), flush=True)
        self._write()

    def fault(self, what: str) -> None:
        """Something is wrong: the part goes on, and the run's exit status tells."""
        self.wrong.append(what)
        print(f"  WRONG: {what}", flush=True)
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Something could not be run, for a reason that is no fault of the code under test."""
        self.skipped[name] = reason
        print(f"  {name:34s} skipped: {reason}", flush=True)
        self._write()

    def _write(self) -> None:
        document = {"results": self.results, "wrong": self.wrong, "skipped": self.skipped}
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False))
        os.replace(temporary, self.path)


def shown(value: Any) -> str:
    """A figure as a person reads it."""
    if isinstance(value, float):
        return f"{value:.3e}" if value and abs(value) < 1e-3 else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def run(main: Callable[[Part], None]) -> None:
    """The `__main__` of a part: ends the process with 0, WRONG, SKIPPED, or 1 and a traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: tiny sizes, kernels in the emulator")
    parser.add_argument("--ceilings", type=json.loads, default={}, help="JSON of the ceilings found before")
    parser.add_argument("--only", default="", help="time only cases whose name contains this, and check none")
    options = parser.parse_args()
    part = Part(options.out, options.dry_run, options.ceilings, options.only)
    try:
        main(part)
    except Exception as error:
        traceback.print_exc()
        part.fault(f"{type(error).__name__}: {error}"[:500])
        sys.exit(1)
    sys.exit(WRONG if part.wrong else SKIPPED if part.skipped and not part.results else 0)
