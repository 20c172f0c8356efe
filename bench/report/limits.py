"""What this machine can do at most, measured in the same hour, and what that allows on each workload.

`python -m bench.report.limits THREADS` prints read bandwidth over a buffer larger than any cache and the rate of large matrix products.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BUFFER_BYTES = 1 << 29
REPEATS = 8


@dataclass(frozen=True)
class Shape:
    """What one token costs at least: bytes of weights to read, multiplications by weights, bytes of keys and values per token.

    head: the weights of the output layer, which a prompt needs for its last token only.
    """

    weight_bytes: int
    weights: int
    head: int
    kv_bytes: int
    dtype: str

    @classmethod
    def of(cls, model: Path) -> Shape:
        """Read from config.json and the headers of the safetensors files. An untied embedding is looked up, not multiplied."""
        config = json.loads((model / "config.json").read_text())
        sizes: dict[str, tuple[int, int]] = {}
        for file in sorted(model.glob("*.safetensors")):
            with file.open("rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            for name, entry in header.items():
                if name != "__metadata__":
                    low, high = entry["data_offsets"]
                    count = 1
                    for dimension in entry["shape"]:
                        count *= dimension
                    sizes[name] = (high - low, count)
        if not config.get("tie_word_embeddings", False):
            sizes = {name: size for name, size in sizes.items() if "embed_tokens" not in name}
        weight_bytes, weights = (sum(size[at] for size in sizes.values()) for at in (0, 1))
        width = weight_bytes // weights
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        kv_bytes = 2 * config["num_hidden_layers"] * heads * head_dim * width
        head = config["vocab_size"] * config["hidden_size"]
        return cls(weight_bytes, weights, head, kv_bytes, "bfloat16" if width == 2 else "float32")


@dataclass(frozen=True)
class Machine:
    """Measured: bytes per second read, multiply-adds counted as two operations per second."""

    bandwidth: float
    flops: float

    def prompt_s(self, shape: Shape, tokens: int) -> float:
        """Least time to compute prompts of that many tokens."""
        return max(2 * (shape.weights - shape.head) * tokens / self.flops, shape.weight_bytes / self.bandwidth)

    def step_s(self, shape: Shape, rows: int, context: float) -> float:
        """Least time of a step that gives each of `rows` sequences of mean length `context` one token."""
        read = shape.weight_bytes + rows * context * shape.kv_bytes
        return max(read / self.bandwidth, 2 * shape.weights * rows / self.flops)

    def offline_s(self, shape: Shape, requests: list[tuple[int, int]]) -> float:
        """Least time for requests (tokens in, out) that all start together, prompts first."""
        total = self.prompt_s(shape, sum(count for count, _ in requests))
        for step in range(1, max(out for _, out in requests)):
            alive = [count + step for count, out in requests if out > step]
            total += self.step_s(shape, len(alive), sum(alive) / len(alive))
        return total


def measure(threads: int, dtype: str) -> Machine:
    """In a process of its own, whose threads end with it."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.report.limits", str(threads), dtype], check=True, capture_output=True, text=True, timeout=300
    )
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    dtype = getattr(torch, sys.argv[2])

    def best(work: object) -> float:
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            work()  # type: ignore[operator]
            times.append(time.perf_counter() - began)
        return min(times)

    with torch.inference_mode():
        buffer = torch.ones(BUFFER_BYTES // 4)
        bandwidth = BUFFER_BYTES / best(buffer.sum)
        left, right = (torch.randn(size, 2048).to(dtype) for size in (1024, 4096))
        torch.nn.functional.linear(left, right)
        flops = 2 * 1024 * 2048 * 4096 / best(lambda: torch.nn.functional.linear(left, right))
    print(json.dumps({"bandwidth": bandwidth, "flops": flops}))


if __name__ == "__main__":
    main()
