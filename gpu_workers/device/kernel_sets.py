"""Sets of CPU kernels: mapped from the cache when they are there, else delivered by a process that compiles them meanwhile.

This process never imports numba. Until a set is ready, and where it cannot be, torch computes the same.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import kernels_cpu
from kernels_cpu import cache
from kernels_cpu.image import Image
from kernels_cpu.recipe import Recipe, key, to_json

log = logging.getLogger(__name__)

# Python finds the very package that is imported here, and looks into its folder for nothing else.
_ROOT = str(Path(kernels_cpu.__file__).parents[1])
_BEGIN = f"import sys; sys.path.insert(0, {_ROOT!r}); import kernels_cpu; del sys.path[0]; from kernels_cpu.build import main; main()"
COMMAND = [sys.executable, "-P", "-c", _BEGIN]


class KernelSet:
    """What a subclass takes over is there once `ready` is True."""

    def __init__(self, what: str) -> None:
        """what: for the log, in the plural."""
        self.ready = False
        self.what = what
        self.awaited = False
        self.on_change: Callable[[], None] = _nothing  # called when what was awaited is ready, or will not come
        self._over = threading.Event()

    def start(self, recipe: Recipe) -> None:
        """Take the kernels over from the cache; if they are not there, as soon as they are compiled."""
        self.awaited = True
        image = cache.find(key(recipe))
        if image is not None:
            self.deliver(image)
        else:
            _COMPILER.ask(self, recipe)

    def deliver(self, image: Image) -> None:
        """Take them over."""
        try:
            self.take(image.load())
        except OSError as error:
            _give_up([self], str(error))
            return
        self.ready = True
        self.end()

    def end(self) -> None:
        """Nothing more will come."""
        self.awaited = False
        self._over.set()
        self.on_change()

    def wait(self, timeout: float) -> bool:
        """Whether they are ready within `timeout` seconds."""
        self._over.wait(timeout)
        return self.ready

    def take(self, addresses: Mapping[str, int]) -> None:
        """Get ready to run the kernels at these addresses. Called once, maybe in another thread, before `ready` is True."""
        raise NotImplementedError


class _Compiler:
    """The compiling process, which is there while somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: list[KernelSet] = []  # in the order in which they asked

    def ask(self, kernels: KernelSet, recipe: Recipe) -> None:
        with self._lock:
            self._waiting.append(kernels)
            try:
                if self._process is None:
                    self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                    threading.Thread(target=self._read, args=(self._process,), name="kernels", daemon=True).start()
                assert self._process.stdin is not None
                os.write(self._process.stdin.fileno(), to_json(recipe).encode() + b"\n")
            except OSError as error:
                if self._process is None:
                    self._waiting.remove(kernels)
                    _give_up([kernels], f"the process that compiles them does not start: {error}")
                # Else it has died, which the thread that reads from it finds as well.

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        with process:
            while not process.stdin.closed:
                answer = _answer(process.stdout)
                if answer is None:
                    self._ended(process)
                    return
                with self._lock:
                    kernels = self._waiting.pop(0)
                    if not self._waiting:
                        # The end of its input is its end.
                        self._process = None
                        process.stdin.close()
                if isinstance(answer, str):
                    _give_up([kernels], answer)
                else:
                    kernels.deliver(answer)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        """It has died, with work left to do."""
        code = process.wait()
        with self._lock:
            left, self._waiting, self._process = self._waiting, [], None
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        _give_up(left, f"the process that compiles them ended {how}")


def _give_up(left: Sequence[KernelSet], why: str) -> None:
    """They will not come."""
    log.warning("%s stay with torch: %s", ", ".join(kernels.what for kernels in left), why)
    for kernels in left:
        kernels.end()


def _answer(pipe: BinaryIO) -> Image | str | None:
    """An image, why there is none, or None at the end."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    if "error" in answer:
        return str(answer["error"])
    content = pipe.read(answer["size"])
    return Image.from_bytes(content) if len(content) == answer["size"] else None


def _nothing() -> None:
    pass


_COMPILER = _Compiler()
