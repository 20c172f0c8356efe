"""How the scheduler's times grow with rows, context and prefix tree: numbers, and a chart with logarithmic axes.

    python -m bench.growth [--out DIR] [--quick]

rows: plan, apply and arena write of a step in which all rows decode. context: the same for 16 rows with contexts of that length.
tree: with that many blocks in the prefix tree, such a step of 64 rows; the same with a full pool, where each new block evicts one; a step
that admits a prompt of 1,024 tokens which the tree has; and forgetting a path of 64 blocks, as after a row with broken logits.
Times are medians in microseconds; a line that rises by one decade per decade is linear.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import svg
from bench.step import BLOCK_SIZE, Bench
from ipc.messages import Submit
from ipc.sampling_params import SamplingParams
from quire.benchmarks import report
from scheduler_proc.prefix_cache import RadixNode

ROWS = (1, 4, 16, 64, 256, 1024)
CONTEXTS = (128, 512, 2048, 8192, 32_768)
TREES = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
TREE_ROWS = 64
PATH = 64
FRONTEND = "frontend.0.1"
Points = list[tuple[float, float]]


def by_rows(sizes: Sequence[int], repeats: int) -> dict[str, Points]:
    return {"decode step": [(rows, _steps(Bench(rows, 2 * repeats, 1), repeats)) for rows in sizes]}


def by_context(sizes: Sequence[int], repeats: int) -> dict[str, Points]:
    return {"decode step, 16 rows": [(length, _steps(Bench(16, 2 * repeats, 1, prompt=length), repeats)) for length in sizes]}


def by_tree(sizes: Sequence[int], repeats: int) -> dict[str, Points]:
    found: dict[str, Points] = {f"decode step, {TREE_ROWS} rows": [], "with a full pool": [], "admission": [], "forget": []}
    for size in sizes:
        bench = Bench(TREE_ROWS, 6 * repeats, 1, prompt=PATH * BLOCK_SIZE, spare=size + (2 + repeats) * PATH)
        tree = Tree(bench, size)
        step, admission, forget = _steps(bench, repeats), tree.admissions(repeats), tree.forgets(repeats)
        # What is left of the pool becomes cached paths too, so that from now on every block is somebody's.
        tree.fill(bench.scheduler.kv.pool.num_free)
        for points, value in zip(found.values(), (step, _steps(bench, repeats), admission, forget)):
            points.append((size, value))
        bench.scheduler.validate()
    return found


class Tree:
    """Cached paths of PATH blocks in a bench's prefix tree, as requests that have ended leave them."""

    def __init__(self, bench: Bench, size: int) -> None:
        self._bench = bench
        self._cache, self._pool = bench.scheduler.kv.cache, bench.scheduler.kv.pool
        self._rng = np.random.default_rng(1)
        self._next_handle = 1_000_000
        self._paths = self.fill(size)

    def fill(self, size: int) -> list[tuple[np.ndarray, RadixNode]]:
        """Add `size` blocks; the paths' tokens and first nodes."""
        paths = []
        while size > 0:
            count = min(PATH, size)
            paths.append(self._path(count))
            size -= count
        return paths

    def _path(self, count: int) -> tuple[np.ndarray, RadixNode]:
        tokens = self._rng.integers(0, 100_000, count * BLOCK_SIZE, dtype=np.int32)
        keys = [self._cache.root_key("")]
        self._cache.extend_keys(keys, tokens.data.cast("B"), 4 * BLOCK_SIZE, count)
        blocks = self._pool.take(count)
        nodes: list[RadixNode] = []
        for key, block in zip(keys[1:], blocks.tolist()):
            node = self._cache.insert(nodes[-1] if nodes else None, key, block, -1)
            assert node is not None
            nodes.append(node)
        self._pool.release(blocks)
        self._cache.release_leaf(nodes[-1])
        return tokens, nodes[0]

    def admissions(self, repeats: int) -> float:
        """Microseconds of a step with the arrival of a prompt whose blocks are cached."""
        bench, times = self._bench, []
        bench.decoding = False
        for number in range(repeats):
            tokens, _ = self._paths[number * 7919 % len(self._paths)]
            prompt = np.append(tokens, np.int32(7)).tobytes()
            self._next_handle += 1
            submit = Submit(self._next_handle, f"t{self._next_handle}", prompt, SamplingParams(max_tokens=1), 0, 0)
            began = time.perf_counter_ns()
            refused = bench.scheduler.add(submit, FRONTEND, 0)
            added = time.perf_counter_ns() - began
            assert refused is None, refused
            times.append(added + sum(bench.turn()))
            while bench.scheduler.num_requests > TREE_ROWS:
                bench.turn()
        bench.decoding = True
        return median(times) / 1e3

    def forgets(self, repeats: int) -> float:
        """Microseconds to take a path out, each with the same size of tree around it."""
        times = []
        for _ in range(repeats):
            _, first = self._path(PATH)
            began = time.perf_counter_ns()
            self._cache.forget(first)
            times.append(time.perf_counter_ns() - began)
        return median(times) / 1e3


def _steps(bench: Bench, repeats: int) -> float:
    """Microseconds of a step."""
    gc.collect()
    gc.freeze()
    times = [sum(bench.turn()) for _ in range(repeats)]
    gc.unfreeze()
    return median(times) / 1e3


def slopes(points: Points) -> float:
    """The steepest rise between neighbours, in decades per decade: above 1 is worse than linear."""
    values = np.log10(np.array(points))
    return float((np.diff(values[:, 1]) / np.diff(values[:, 0])).max())


def measure(quick: bool, repeats: int) -> list[svg.Lines]:
    cut = 3 if quick else None
    return [
        svg.Lines("Decode step by rows", "rows", "microseconds", by_rows(ROWS[:cut], repeats)),
        svg.Lines("Decode step by context", "tokens of context", "microseconds", by_context(CONTEXTS[:cut], repeats)),
        svg.Lines("By size of the prefix tree", "blocks in the tree", "microseconds", by_tree(TREES[:cut], repeats)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory for growth.json and growth.svg")
    parser.add_argument("--repeats", type=int, default=200, help="steps measured of each size (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes of each")
    arguments = parser.parse_args()
    panels = measure(arguments.quick, arguments.repeats)
    document: dict[str, Any] = {"environment": report.environment(), "panels": []}
    document["environment"]["command"] = report.command("python -m bench.growth", sys.argv[1:])
    for panel in panels:
        print(panel.title)
        for name, points in panel.series.items():
            steepest = slopes(points)
            print(f"  {name:24} {'  '.join(f'{x:g}: {y:.1f}' for x, y in points)}   steepest {steepest:.2f}")
            entry = {"panel": panel.title, "x": panel.x_label, "series": name, "us": [[x, round(y, 2)] for x, y in points]}
            document["panels"].append({**entry, "steepest": round(steepest, 2)})
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "growth.json").write_text(json.dumps(document, indent=1) + "\n")
        (arguments.out / "growth.svg").write_text(svg.lines(panels))


if __name__ == "__main__":
    main()
