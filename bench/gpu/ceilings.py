"""The two rates that everything else is held against: how fast memory is copied, and how fast bf16 matrices are multiplied."""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.part import Part, run
from bench.gpu.timing import Timer


def main(part: Part) -> None:
    timer = Timer(part.device)
    _memory(part, timer)
    _products(part, timer)


def _memory(part: Part, timer: Timer) -> None:
    size = 1 << (16 if part.dry else 32)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=part.device)
    target = torch.empty_like(source)
    for count in (size // 16, size):  # the smaller one shows how much of the rate a step's own size gets
        to, origin = target[:count], source[:count]
        part.record(f"copy {count >> 10} KiB", bytes_per_s=2 * count / timer.seconds(partial(to.copy_, origin)))
    part.record("read", bytes_per_s=size / timer.seconds(source.view(torch.int64).sum))


def _products(part: Part, timer: Timer) -> None:
    n = 64 if part.dry else 8192
    # Random numbers: products of zeros draw less power and run faster than any model's do.
    a, b = (torch.randn(n, n, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    part.record(f"gemm {n}", flop_per_s=2 * n**3 / timer.seconds(lambda: a @ b, cold=False))
    weight = torch.randn(28672 if not part.dry else 64, 4096 if not part.dry else 64, device=part.device, dtype=torch.bfloat16)
    for rows in (1, 16, 64, 128, 256, 512):  # gate and up of Llama-3.1-8B: at few rows the weight's bytes are the limit
        x = torch.randn(rows, weight.shape[1], device=part.device, dtype=torch.bfloat16)
        seconds = timer.seconds(partial(torch.nn.functional.linear, x, weight))
        part.record(f"linear {rows} rows", us=seconds * 1e6, bytes_per_s=2 * weight.numel() / seconds,
                    flop_per_s=2 * rows * weight.numel() / seconds)  # fmt: skip


if __name__ == "__main__":
    run(main)
