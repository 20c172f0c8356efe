"""The requests of a report: written once as files, so that every engine gets the same token ids.

a: offline, all at once, 128 in and 128 out. b: offline, lengths as in a chat log (lognormal). c: one stream, 512 in. d: closed loop over
HTTP, 128 in and 64 out. e: many requests that share a long prefix. tiny: closed loop over HTTP with a model so small that the
engine's own overhead is nearly all of the time.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from quire.benchmarks.workload import FIRST_ORDINARY_TOKEN

SEED = 20_261


@dataclass(frozen=True)
class Sizes:
    """How large a report is. levels: concurrency to number of requests over HTTP."""

    offline: int = 64
    length: int = 128
    cap: int = 512
    stream_in: int = 512
    stream_out: int = 128
    online_in: int = 128
    online_out: int = 64
    prefix: int = 1024
    shared: int = 64
    levels: tuple[tuple[int, int], ...] = ((1, 6), (8, 32), (32, 96))
    tiny_levels: tuple[tuple[int, int], ...] = ((1, 6), (32, 128), (256, 768))


FULL = Sizes()
# For a first look and for tests: seconds on any machine.
QUICK = Sizes(4, 12, 24, 24, 8, 12, 6, 32, 6, ((1, 2), (4, 8)), ((1, 2), (8, 16)))


def write(directory: Path, sizes: Sizes, vocab_size: int, tiny_vocab_size: int) -> None:
    """Write a.json to e.json and tiny.json: {"requests": [{"prompt": [ids], "out": n}, ...]}."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)

    def ids(count: int, vocab: int = vocab_size) -> list[int]:
        first = FIRST_ORDINARY_TOKEN if vocab > 2 * FIRST_ORDINARY_TOKEN else 0
        return [rng.randrange(first, vocab) for _ in range(count)]

    def length(mean: float, sigma: float) -> int:
        return max(4, min(sizes.cap, round(rng.lognormvariate(math.log(mean * sizes.cap / 512) - sigma * sigma / 2, sigma))))

    prefix = ids(sizes.prefix)
    most, tiny_most = (sum(count for _, count in levels) for levels in (sizes.levels, sizes.tiny_levels))
    loads = {
        "a": [(ids(sizes.length), sizes.length) for _ in range(sizes.offline)],
        "b": [(ids(length(270, 1.0)), length(220, 0.9)) for _ in range(sizes.offline)],
        "c": [(ids(sizes.stream_in), sizes.stream_out) for _ in range(8)],
        "d": [(ids(sizes.online_in), sizes.online_out) for _ in range(most)],
        "e": [(prefix + ids(32), 16) for _ in range(sizes.shared)],
        "tiny": [(ids(32, tiny_vocab_size), sizes.length) for _ in range(tiny_most)],
    }
    for name, requests in loads.items():
        document = {"requests": [{"prompt": prompt, "out": out} for prompt, out in requests]}
        (directory / f"{name}.json").write_text(json.dumps(document))
