"""Figures of a benchmark run: percentiles per request and per token, as a table for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

import quire
from ipc.errors import ConfigError
from quire.benchmarks.machine import cpu_name


class RequestTiming(msgspec.Struct):
    """What a client saw of one request. Times in seconds; chunk_gaps are the times between chunks that carried text."""

    ttft: float
    e2e: float
    tokens: int
    prompt_tokens: int
    chunk_gaps: list[float]
    error: str = ""

    @property
    def inter_token(self) -> float:
        """Mean time per token after the first."""
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(timings: Sequence[RequestTiming], wall_s: float) -> dict[str, Any]:
    """Throughput, TTFT, inter-token and gap percentiles (milliseconds) of the requests that succeeded, and how many did not."""
    good = [timing for timing in timings if not timing.error]
    failed = [timing for timing in timings if timing.error]
    output_tokens = sum(timing.tokens for timing in good)
    summary: dict[str, Any] = {
        "completed": len(good),
        "failed": len(failed),
        "wall_s": round(wall_s, 4),
        "input_tokens": sum(timing.prompt_tokens for timing in good),
        "output_tokens": output_tokens,
        "requests_per_s": round(len(good) / wall_s, 3),
        "output_tokens_per_s": round(output_tokens / wall_s, 2),
        "total_tokens_per_s": round((output_tokens + sum(timing.prompt_tokens for timing in good)) / wall_s, 2),
    }
    if failed:
        summary["first_error"] = failed[0].error
    series = {
        "ttft_ms": [timing.ttft for timing in good],
        "inter_token_ms": [timing.inter_token for timing in good if timing.tokens > 1],
        "gap_ms": [gap for timing in good for gap in timing.chunk_gaps],
        "e2e_ms": [timing.e2e for timing in good],
    }
    for name, values in series.items():
        summary[name] = {
            "mean": round(sum(values) / len(values) * 1e3, 3) if values else 0.0,
            **{f"p{percent}": round(percentile(values, percent) * 1e3, 3) for percent in (50, 90, 99)},
        }
    return summary


def environment() -> dict[str, Any]:
    """The machine and versions a result belongs to."""
    return {
        "quire": quire.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command("quire", sys.argv[1:]),
    }


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line with the last part of each path, since a result outlives the folders of the machine it was measured on."""
    return " ".join([program, *(os.path.basename(word.rstrip("/")) or word for word in arguments)])


def print_table(title: str, summary: dict[str, Any]) -> None:
    """The summary as aligned lines on stdout."""
    print(f"\n{title}")
    for name, value in summary.items():
        if isinstance(value, dict):
            shown = "  ".join(f"{key} {figure:.2f}" for key, figure in value.items())
        else:
            shown = f"{value:,}" if isinstance(value, (int, float)) else str(value)
        print(f"  {name:<22} {shown}")


def earlier_runs(path: str) -> list[dict[str, Any]]:
    """What the file holds already; nothing if there is none yet. Raises ConfigError for one that cannot be added to."""
    folder = os.path.dirname(path) or "."
    if not os.access(path if os.path.exists(path) else folder, os.W_OK) or os.path.isdir(path):
        raise ConfigError(f"--output-json: cannot write {path}")
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as handle:
            runs = json.load(handle)["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        runs = None
    if not isinstance(runs, list):
        raise ConfigError(f"--output-json: {path} is there already and holds no runs to add to")
    return runs


def write(path: str | None, document: dict[str, Any]) -> None:
    """Add the run to a JSON file ({"runs": [...]}), or print it as one line when no file is named."""
    if not path:
        print(json.dumps(document))
        return
    runs = earlier_runs(path)
    runs.append(document)
    with open(path, "w", encoding="utf-8") as handle:
        json.dump({"runs": runs}, handle, indent=1)
        handle.write("\n")
