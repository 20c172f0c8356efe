"""What one decode step costs in the scheduler: plan (arena write included) and apply, with every row decoding.

    python -m bench.step [--rows 1,32,256,1024] [--steps 300] [--frontends 1] [--json]

Results come from nowhere (a token that stops nobody), so all that is measured is the scheduler. Prompts differ in length, so that rows
cross block boundaries at different steps, as in life.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time

import numpy as np

from ipc.arena import NUM_SLOTS, Arena, Dimensions, PlanHeader, ResultHeader
from ipc.config import CacheConfig, Config, ModelInfo, SchedulerConfig
from ipc.messages import Submit
from ipc.sampling_params import SamplingParams
from scheduler_proc.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT = 128


class Bench:
    """A scheduler with `rows` requests past their prompts of at least `prompt` tokens, room for one more, and `spare` more blocks."""

    def __init__(self, rows: int, steps: int, frontends: int, prompt: int = PROMPT, spare: int = 0) -> None:
        length = prompt + BLOCK_SIZE + steps + 64
        config = Config(
            cache=CacheConfig(block_size=BLOCK_SIZE),
            scheduler=SchedulerConfig(max_num_seqs=rows + 1, max_num_batched_tokens=max(8192, rows + 1)),
        )
        model = ModelInfo(
            path="", tokenizer_path="", name="", architecture="", vocab_size=128_256, max_model_len=length, eos_token_ids=[128_001, 128_009]
        )
        self.arena = Arena.create(Dimensions.of(config, model))
        self.scheduler = Scheduler(config, model, rows * (length // BLOCK_SIZE + 2) + spare, b"0" * 32)
        self.step = 0
        self.decoding = False
        self.outstanding: list[int] = []
        rng = np.random.default_rng(0)
        for handle in range(rows):
            tokens = rng.integers(0, 100_000, prompt + handle % BLOCK_SIZE, dtype=np.int32).tobytes()
            submit = Submit(handle, f"r{handle}", tokens, SamplingParams(max_tokens=None), 0, handle)
            assert self.scheduler.add(submit, f"frontend.{handle % frontends}.1", 0) is None
        while len(self.scheduler.waiting) or self.scheduler.lifecycle.prefilling:
            self.turn()
        for _ in range(4):
            self.turn()
        self.decoding = True

    def close(self) -> None:
        """Give back the arena's memory."""
        os.close(self.arena.fd)

    def turn(self) -> tuple[int, int]:
        """Nanoseconds of one plan and one apply, with two steps in flight around them."""
        began = time.perf_counter_ns()
        while self.scheduler.may_plan:
            began = time.perf_counter_ns()
            self.scheduler.plan(self.step, self.arena.plans[self.step % NUM_SLOTS], self.step)
            planned = time.perf_counter_ns()
            self.outstanding.append(self.step)
            self.step += 1
        step = self.outstanding.pop(0)
        plan, result = self.arena.plans[step % NUM_SLOTS], self.arena.results[step % NUM_SLOTS]
        count = int(plan.header[PlanHeader.NUM_ROWS])
        result.tokens[:count] = 1000 + step % 1000
        result.flags[:count] = 0
        result.header[: ResultHeader.FORWARD_NS + 1] = (step, count, 1)
        apply_began = time.perf_counter_ns()
        emissions = self.scheduler.apply(result, step)
        applied = time.perf_counter_ns()
        # While prompts are computed in chunks not every row gives one.
        assert not self.decoding or sum(len(tokens.handles) for _, tokens in emissions) == 4 * count, "a row of the plan gave no token"
        return planned - began, applied - apply_began


def measure(rows: int, steps: int, frontends: int) -> dict[str, float]:
    """Percentiles in microseconds."""
    bench = Bench(rows, steps, frontends)
    gc.collect()
    gc.freeze()
    times = np.array([bench.turn() for _ in range(steps)]) / 1000
    gc.unfreeze()
    total = times.sum(axis=1)
    return {
        "rows": rows,
        "frontends": frontends,
        "plan_us_p50": round(float(np.median(times[:, 0])), 1),
        "apply_us_p50": round(float(np.median(times[:, 1])), 1),
        "total_us_p50": round(float(np.median(total)), 1),
        "total_us_p99": round(float(np.percentile(total, 99)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,32,256,1024", help="batch sizes, separated by commas")
    parser.add_argument("--steps", type=int, default=300, help="steps measured of each")
    parser.add_argument("--frontends", type=int, default=1, help="frontend processes that the requests come from")
    parser.add_argument("--json", action="store_true", help="also print the results as one line of JSON, last")
    arguments = parser.parse_args()
    results = []
    print(f"{'rows':>6} {'plan p50':>10} {'apply p50':>10} {'both p50':>10} {'both p99':>10}   (microseconds)")
    for rows in map(int, arguments.rows.split(",")):
        result = measure(rows, arguments.steps, arguments.frontends)
        results.append(result)
        print("{rows:>6} {plan_us_p50:>10} {apply_us_p50:>10} {total_us_p50:>10} {total_us_p99:>10}".format(**result))
    if arguments.json:
        print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
