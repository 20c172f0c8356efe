"""The CPU worker's forward pass alone, without scheduler and HTTP: `python -m bench.forward MODEL [--rows 1,8,64] [--prefill 512]
[--context 256] [--repeat 5] [--quantization none,int8,int4] [--threads 2] [--json FILE] [--profile]`.

For each format: milliseconds of a decode step (layers, head and greedy choice) of so many rows that have `context` tokens, and of a
prefill; the share of the machine's own limits, measured in the same run: memory read for what a step reads, float32 products for what it
computes. Formats take turns in every round, so that a busy machine hits all of them alike; the median and the least are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_workers.batch import StepInputs
from gpu_workers.collectives import Collectives
from gpu_workers.device.cpu import CPUDevice
from gpu_workers.kv_cache import KVCache
from gpu_workers.models.load import load
from ipc import config as ipc_config
from ipc import model_info
from quire.benchmarks import report


class Forward:
    """A loaded model with room for a batch."""

    def __init__(self, path: str, quantization: str, threads: int, rows: int, context: int) -> None:
        flags: dict[str, Any] = {"model": path, "cpu_threads": threads}
        if quantization != "none":
            flags["quantization"] = quantization
        config = ipc_config.load(flags, environ={})
        self.device = CPUDevice(config)
        self.model = load(config, model_info.read(path, config.model, "bench"), self.device, Collectives(), lambda done, total: None)
        spec, heads = self.model.spec, self.model.heads
        self.block_size = config.cache.block_size
        self.blocks_per_row = -(-context // self.block_size)
        blocks = rows * self.blocks_per_row
        self.cache = KVCache(self.device, spec.num_layers, blocks, heads.num_kv, self.block_size, spec.head_dim, self.model.dtype)
        for cache in (*self.cache.k, *self.cache.v):
            cache.normal_()
        self.attention = self.device.attention(spec, self.cache)
        self._tables = np.random.default_rng(0).permutation(blocks).astype(np.int32).reshape(rows, self.blocks_per_row)

    def wait(self) -> None:
        """Until all kernels are compiled."""
        for kernels in self.device.kernel_sets:
            kernels.wait(300)

    def step(self, rows: int, new: int, start: int) -> None:
        """One step of `rows` rows with `new` tokens each after `start` others."""
        positions = np.tile(np.arange(start, start + new), rows)
        row_of_token = np.repeat(np.arange(rows), new)
        tables = self._tables[:rows]
        block, offset = np.divmod(positions, self.block_size)
        lengths = np.full(rows, start + new)
        step = StepInputs(
            rows=np.arange(rows), num_new=np.full(rows, new), start=np.full(rows, start), seq_lens=lengths,
            flags=np.zeros(rows, np.int32), query_starts=np.arange(rows + 1) * new, row_of_token=row_of_token,
            token_ids=positions % self.model.spec.vocab_size, given=np.zeros(0, np.int32), positions=positions,
            slots=tables[row_of_token, block].astype(np.int64) * self.block_size + offset, sample_at=np.arange(rows), block_tables=tables,
            masked_at=np.zeros(0, np.int64), masks=np.zeros((0, 0), np.int32),
        )  # fmt: skip
        with torch.inference_mode():
            self.device.begin_step(len(positions), *self.model.size)
            self.attention.plan(step)
            last = None if new == 1 else torch.from_numpy(step.last)
            hidden = self.model.forward(torch.from_numpy(step.token_ids), torch.from_numpy(positions), self.attention, last)
            logits = self.model.logits(hidden)
            assert logits is not None
            self.device.end_step()
            self.model.ops.most_likely(logits)


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def limits(threads: int) -> dict[str, Callable[[], float]]:
    """The machine's own figures, measured when called: GB/s of memory read, GFLOP/s of a float32 product."""
    torch.set_num_threads(threads)
    memory = torch.zeros(2**25, dtype=torch.int64)
    a, b = torch.randn(512, 1024), torch.ops.mkldnn._reorder_linear_weight(torch.randn(4096, 1024), 512)

    def product() -> float:
        torch.set_num_threads(threads)
        return 2 * 512 * 1024 * 4096 / timed(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")) / 1e9

    def read() -> float:
        torch.set_num_threads(threads)
        return memory.nbytes / timed(memory.sum) / 1e9

    return {"read_gb_s": read, "float32_gflop_s": product}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", default="1,8,64")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of the steps of the first format")
    arguments = parser.parse_args()
    rows = [int(number) for number in arguments.rows.split(",")]
    models = {}
    for name in arguments.quantization.split(","):
        models[name] = Forward(arguments.model, name, arguments.threads, max(rows), max(arguments.context, arguments.prefill))
        models[name].wait()
    work = {f"decode {count}": (count, 1, arguments.context - 1) for count in rows} | {
        f"prefill {arguments.prefill}": (1, arguments.prefill, 0)
    }
    measure = limits(arguments.threads)
    took: dict[str, list[float]] = {}
    for turn in range(arguments.repeat + 1):
        found = {name: act() for name, act in measure.items()}
        for what, how in work.items():
            found |= {f"{name} {what}": timed(partial(model.step, *how)) * 1e3 for name, model in models.items()}
        for name, value in found.items():
            if turn:  # the first turn packs weights and warms up
                took.setdefault(name, []).append(value)
    document: dict[str, Any] = {name: round(max(took[name]), 1) for name in measure}
    document["ms"] = {
        name: {"median": round(statistics.median(values), 2), "least": round(min(values), 2)}
        for name, values in took.items()
        if name not in measure
    }
    elements = next(iter(models.values())).model.size[0]
    document["elements"] = elements
    document["environment"] = report.environment()
    document["environment"]["command"] = report.command("python -m bench.forward", sys.argv[1:])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    if arguments.profile:
        for what, how in work.items():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                next(iter(models.values())).step(*how)
            print(what)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40))


if __name__ == "__main__":
    main()
