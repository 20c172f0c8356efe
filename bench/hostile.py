"""What clients with hostile grammars cost others: the time between tokens of two plain streams, with and without them, in turns.

    python -m bench.hostile [--model DIR] [--turns 4] [--seconds 8] [--json]

Two clients send grammars that are hard to compile, hard to follow or refused, one after the other and without a pause. Quiet and hostile
turns alternate, because only ratios of neighbours mean something on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import numpy as np

from ipc.errors import QuireError
from ipc.grammar import StructuredOutputsParams
from ipc.sampling_params import SamplingParams

GRAMMARS: list[dict[str, Any]] = [
    {"regex": "(a|aa|aaa|aaaa)*" * 12 + "b"},
    {"regex": "([a-z]{1,50} ?){1,60}[0-9]{3,900}"},
    {"regex": "(.*a){40}.{60}"},
    {"regex": "a{1,100000}"},
    {"regex": "(" * 500 + "a" + ")" * 500},
    {"json": {"type": "array", "items": {"enum": [f"w{number}" for number in range(3000)]}}},
    {"json": {"$ref": "#"}},
    {"grammar": 'start: start start | "a"'},
    {"choice": ["x" * length for length in range(1, 400)]},
]


class Run:
    """Two streams and two hostile clients on one engine; gaps: seconds between tokens in the present turn."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._hostile = asyncio.Event()
        self.gaps: list[float] = []
        self.served = self.refused = 0

    async def stream(self, seed: int) -> None:
        while True:
            last = time.perf_counter()
            params = SamplingParams(max_tokens=300, ignore_eos=True, seed=seed)
            async for _ in self._llm.generate("Once upon a time", params, delta=True):
                now = time.perf_counter()
                self.gaps.append(now - last)
                last = now

    async def attack(self, number: int) -> None:
        while True:
            await self._hostile.wait()
            number += 1
            rule = StructuredOutputsParams(**GRAMMARS[number % len(GRAMMARS)])
            try:
                async for _ in self._llm.generate("Go", SamplingParams(max_tokens=40, seed=number, structured_outputs=rule), delta=True):
                    pass
                self.served += 1
            except QuireError:
                self.refused += 1

    async def turn(self, hostile: bool, seconds: float) -> tuple[float, float]:
        """Median and 99th percentile between tokens, in ms."""
        if hostile:
            self._hostile.set()
        else:
            self._hostile.clear()
        await asyncio.sleep(seconds / 4)  # what the turn before began comes to its end
        self.gaps.clear()
        await asyncio.sleep(seconds)
        middle, high = np.percentile(self.gaps, [50, 99]) * 1000
        return round(float(middle), 1), round(float(high), 1)


async def measure(model: str, turns: int, seconds: float) -> dict[str, Any]:
    from quire import AsyncLLM

    async with AsyncLLM(model, max_num_seqs=16, grammar_compile_timeout=2.0) as llm:
        run = Run(llm)
        tasks = [asyncio.create_task(work) for work in (run.stream(1), run.stream(2), run.attack(0), run.attack(4))]
        await run.turn(True, seconds / 2)  # the compilers start
        pairs = [(await run.turn(False, seconds), await run.turn(True, seconds)) for _ in range(turns)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ratios = np.median([np.array(hostile) / np.array(quiet) for quiet, hostile in pairs], axis=0)
    return {
        "quiet_p50_p99_ms": [quiet for quiet, _ in pairs],
        "hostile_p50_p99_ms": [hostile for _, hostile in pairs],
        "median_ratio_p50": round(float(ratios[0]), 2),
        "median_ratio_p99": round(float(ratios[1]), 2),
        "hostile_served": run.served,
        "hostile_refused": run.refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="model directory; the bundled one if empty")
    parser.add_argument("--turns", type=int, default=4, help="quiet and hostile turns, of each so many")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn")
    parser.add_argument("--json", action="store_true", help="print the results as one line of JSON")
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments.model, arguments.turns, arguments.seconds))
    if arguments.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
