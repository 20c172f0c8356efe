"""What a launch costs: the host's time per launch, and the gap that a captured graph leaves between kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.gpu.case import Inputs
from bench.gpu.kernels import on_device
from bench.gpu.part import Part, run
from bench.gpu.small_cases import gathered, rms
from bench.gpu.timing import Timer, host_seconds


def main(part: Part) -> None:
    make, count = Inputs(part.device), 2 if part.dry else 1000
    with on_device(part):
        tiny = rms(make, "", 1, 64)
        x = make.normal(1, 64)
        timer = Timer(part.device)
        for name, call in {"launcher add_rms_norm": tiny.run, "torch add": lambda: torch.add(x, x, out=x)}.items():
            part.record(f"host, {name}", us_per_launch=1e6 * host_seconds(call, count, not part.dry))
        part.record(
            "host, launcher gather_inputs (2 launches)", us_per_call=1e6 * host_seconds(gathered(make, "", 64).run, count, not part.dry)
        )
        for name, call in {"launcher add_rms_norm": tiny.run, "torch add": lambda: torch.add(x, x, out=x)}.items():
            # Kernels too small to take time of their own: what a replay takes per kernel is start, end and the gap between two.
            kernels = 4 if part.dry else 320
            replay = captured(part, lambda call=call, n=kernels: [call() for _ in range(n)])  # type: ignore[misc]
            seconds = timer.seconds(replay, cold=False)
            part.record(f"graph of {kernels}, {name}", us_per_kernel=1e6 * seconds / kernels,
                        host_us_per_replay=1e6 * host_seconds(replay, 2 if part.dry else 20, not part.dry))  # fmt: skip
        one = captured(part, tiny.run)
        part.record("graph of 1, launcher add_rms_norm", us_per_replay=1e6 * timer.seconds(one, cold=False))


def captured(part: Part, call: Callable[[], object]) -> Callable[[], object]:
    """Replays what `call` launches; without a GPU the call itself."""
    call()  # loads what a capture may not load
    if part.dry:
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


if __name__ == "__main__":
    run(main)
