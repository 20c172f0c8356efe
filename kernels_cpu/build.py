"""The process that compiles kernels, so that numba and LLVM are never loaded where requests are served.

It reads recipes from its input, one JSON line each, and answers each, in this order, with a line {"size", "compiled"} and so many bytes of
image, or with {"error"}. When its input ends, nobody wants anything any more, and it ends at once, whatever it is doing.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
from contextlib import ExitStack

from kernels_cpu import cache, recipe
from kernels_cpu.image import Image

# A little behind the processes that serve. Further behind, a busy machine of two cores had its kernels so much later that it served fewer
# tokens in its first half minute (bench/results/2026-11-27-kernel-start.json).
NICE = 2


def build(wanted: recipe.Recipe) -> Image:
    """Compile a set in this process. Raises LinkError, and whatever numba may raise."""
    from kernels_cpu import compiler
    from kernels_cpu.link import link

    sources = {}
    for name, kernel in wanted.items():
        make = getattr(importlib.import_module(f"kernels_cpu.{kernel.module}"), kernel.function)
        sources[name] = make(*kernel.arguments)
    return link(compiler.compiled(sources), list(sources))


def find_or_build(wanted: recipe.Recipe) -> tuple[Image, bool]:
    """The image, from the cache or compiled and kept there, and whether this process had to compile it. Of several processes that want the
    same, one does. Raises as `build` does."""
    key = recipe.key(wanted)
    with ExitStack() as stack:
        try:
            stack.enter_context(cache.alone(key))
        except (OSError, RuntimeError):
            return build(wanted), True
        image = cache.find(key)
        if image is not None:
            return image, False
        image = build(wanted)
        try:
            cache.keep(key, image)
        except OSError:
            pass  # the disk is full, or may not be written to: the next start compiles again
        return image, True


def main() -> None:
    os.nice(NICE)
    with open("/proc/self/comm", "w") as name:
        name.write("quire-kernels")
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        content = b""
        try:
            image, compiled = find_or_build(recipe.from_json(lines.get()))
            content = image.to_bytes()
            answer: dict[str, object] = {"size": len(content), "compiled": compiled}
        except Exception as error:  # whatever numba may raise
            answer = {"error": f"{type(error).__name__}: {error}"}
        with open(answers, "wb", closefd=False) as file:
            file.write(json.dumps(answer).encode() + b"\n" + content)


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
