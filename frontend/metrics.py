"""Counters and histograms in files that all frontends of one engine can read, and their Prometheus text.

Each frontend maps its own file in the runtime directory and is the only one to write it; whoever is scraped adds up the files of all.
A frontend that is restarted maps its predecessor's file, so counters never go backwards. No lock: a word is eight aligned bytes.
Gauges of the engine come from the scheduler's status record at the time of the scrape.
"""

from __future__ import annotations

import bisect
import glob
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ipc.arena import I64, Arena, Stat
from ipc.config import ChildSpec

F64 = npt.NDArray[np.float64]
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
REFUSALS = ("queue_full", "draining", "loading")
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
LENGTHS = tuple(step * 10**power for power in range(7) for step in (1, 2, 5))
SMALL = (1, 2, 5, 10, 20)

# name: (help, buckets)
HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", TTFT),
    "inter_token_latency_seconds": ("Between two tokens of one request.", ITL),
    "request_time_per_output_token_seconds": ("Mean time per token after the first, by request.", ITL),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", LATENCY),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", LATENCY),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", LATENCY),
    "request_decode_time_seconds": ("From a request's first token to its last.", LATENCY),
    "request_inference_time_seconds": ("From a request's first step to its last token.", LATENCY),
    "request_prompt_tokens": ("Prompt tokens by request.", LENGTHS),
    "request_generation_tokens": ("Output tokens by request.", LENGTHS),
    "request_params_n": ("The parameter n.", SMALL),
    "request_params_max_tokens": ("The parameter max_tokens.", LENGTHS),
    "request_num_preemptions": ("How often a request was preempted.", (0, 1, 2, 5, 10)),
}
# name: (help, label, its values)
COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "request_success": ("Requests that ended, by reason.", "finished_reason", FINISH_REASONS),
    "admission_rejections": ("Requests that were not taken, by reason.", "reason", REFUSALS),
    "http_requests": ("HTTP responses, by class of status.", "status", ("2xx", "4xx", "5xx")),
    "client_disconnects": ("Clients that left before their answer was complete.", "", ("",)),
    "slow_readers": ("Streams ended because their client did not read.", "", ("",)),
}
# name: (help, word of the scheduler's record)
ENGINE_COUNTERS = {
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", Stat.PREFIX_QUERIES),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", Stat.PREFIX_HITS),
    "num_preemptions": ("Preemptions.", Stat.PREEMPTIONS),
    "prompt_tokens": ("Prefill tokens computed.", Stat.PROMPT_TOKENS),
    "generation_tokens": ("Tokens generated.", Stat.GENERATION_TOKENS),
    "embeddings": ("Embedding vectors given.", Stat.EMBEDDINGS),
    "engine_steps": ("Steps of the engine.", Stat.STEPS),
    "engine_step_tokens": ("Tokens computed in steps, prefill and decode.", Stat.STEP_TOKENS),
    "evicted_blocks": ("KV blocks evicted from the prefix cache.", Stat.EVICTED_BLOCKS),
}
# label: word of the scheduler's record that sums nanoseconds
ENGINE_STAGES = {"plan": Stat.PLAN_NS, "apply": Stat.APPLY_NS, "worker": Stat.FORWARD_NS}
ALIASES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info")


def _layout() -> tuple[dict[str, int], int]:
    """Where each metric's words begin, and how many there are. A histogram has one word per bucket, one beyond the last, and its sum."""
    places, size = {}, 1
    for name, (_, buckets) in HISTOGRAMS.items():
        places[name] = size
        size += len(buckets) + 2
    for name, (_, _, values) in COUNTERS.items():
        places[name] = size
        size += len(values)
    return places, size


_PLACES, _WORDS = _layout()


class Metrics:
    """One frontend's own words."""

    def __init__(self, directory: str, index: int) -> None:
        """Maps <directory>/metrics-<index>. Raises OSError when it cannot."""
        fd = os.open(os.path.join(directory, f"metrics-{index}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _WORDS * 8)
            self._memory = mmap.mmap(fd, _WORDS * 8)
        finally:
            os.close(fd)
        self._words = np.frombuffer(self._memory, dtype=np.float64)
        self._directory = directory
        self._itl_edges = np.array(ITL)
        self._itl = _PLACES["inter_token_latency_seconds"]

    def count(self, name: str, value: str = "", amount: int = 1) -> None:
        self._words[_PLACES[name] + COUNTERS[name][2].index(value)] += amount

    def observe(self, name: str, value: float) -> None:
        buckets = HISTOGRAMS[name][1]
        place = _PLACES[name]
        self._words[place + bisect.bisect_left(buckets, value)] += 1
        self._words[place + len(buckets) + 1] += value

    def observe_gaps(self, gaps_ns: list[int]) -> None:
        """Inter-token times of one message at once."""
        seconds = np.array(gaps_ns) * 1e-9
        place, count = self._itl, len(ITL) + 1
        self._words[place : place + count] += np.bincount(np.searchsorted(self._itl_edges, seconds), minlength=count)
        self._words[place + count] += seconds.sum()

    def total(self) -> F64:
        """The words of all frontends, added up."""
        total = np.zeros(_WORDS)
        for file in glob.glob(os.path.join(glob.escape(self._directory), "metrics-*")):
            try:
                words = np.fromfile(file, dtype=np.float64)
            except OSError:
                continue
            if len(words) == _WORDS:
                total += words
        return total


def render(metrics: Metrics, spec: ChildSpec, arena: Arena) -> str:
    """The whole page in Prometheus's text format."""
    labels = f'model_name="{_escape(spec.model.name)}",engine="0"'
    lines: list[str] = []
    total = metrics.total()
    for name, (text, buckets) in HISTOGRAMS.items():
        lines += _histogram(name, text, buckets, total[_PLACES[name] :], labels)
    for name, (text, label, values) in COUNTERS.items():
        lines += [f"# HELP quire:{name}_total {text}", f"# TYPE quire:{name}_total counter"]
        for place, value in enumerate(values):
            extra = f',{label}="{value}"' if label else ""
            lines.append(f"quire:{name}_total{{{labels}{extra}}} {total[_PLACES[name] + place]:.0f}")
    scheduler = arena.status("scheduler")
    for name, (text, word) in ENGINE_COUNTERS.items():
        lines += [
            f"# HELP quire:{name}_total {text}",
            f"# TYPE quire:{name}_total counter",
            f"quire:{name}_total{{{labels}}} {int(scheduler[word])}",
        ]
    lines += [
        "# HELP quire:engine_stage_seconds_total Time spent in each stage of a step.",
        "# TYPE quire:engine_stage_seconds_total counter",
    ]
    for stage, word in ENGINE_STAGES.items():
        lines.append(f'quire:engine_stage_seconds_total{{{labels},stage="{stage}"}} {int(scheduler[word]) * 1e-9:.6f}')
    for name, text, extra, number in _gauges(spec, arena, scheduler):
        for prefix in ("quire", "vllm") if name in ALIASES else ("quire",):
            lines += [
                f"# HELP {prefix}:{name} {text}",
                f"# TYPE {prefix}:{name} gauge",
                f"{prefix}:{name}{{{labels}{extra}}} {number:.10g}",
            ]
    return "\n".join(lines) + "\n"


def _gauges(spec: ChildSpec, arena: Arena, scheduler: I64) -> Iterator[tuple[str, str, str, float]]:
    """Name, help, further labels and value."""
    blocks = int(scheduler[Stat.BLOCKS_TOTAL])
    frontends = [arena.status("frontend", index) for index in range(spec.config.parallel.frontends)]
    yield "num_requests_running", "Requests in the running batch.", "", int(scheduler[Stat.NUM_RUNNING])
    yield "num_requests_waiting", "Requests that wait for their turn.", "", int(scheduler[Stat.NUM_WAITING])
    yield (
        "kv_cache_usage_perc",
        "KV blocks held by running requests, 1 is all of them.",
        "",
        int(scheduler[Stat.BLOCKS_USED]) / max(blocks, 1),
    )
    yield "kv_cache_cached_blocks", "KV blocks that only the prefix cache holds.", "", int(scheduler[Stat.BLOCKS_CACHED])
    yield "open_streams", "Requests that frontends wait for.", "", sum(int(record[Stat.OPEN_STREAMS]) for record in frontends)
    yield "open_connections", "Open client connections.", "", sum(int(record[Stat.OPEN_CONNECTIONS]) for record in frontends)
    info = f',block_size="{spec.config.cache.block_size}",num_gpu_blocks="{blocks}"'
    info += f',cache_dtype="{spec.config.cache.kv_cache_dtype}"'
    info += f',enable_prefix_caching="{spec.config.cache.enable_prefix_caching}"'
    yield "cache_config_info", "The KV cache's configuration, as labels.", info, 1


def _histogram(name: str, text: str, buckets: Sequence[float], words: F64, labels: str) -> Iterator[str]:
    yield f"# HELP quire:{name} {text}"
    yield f"# TYPE quire:{name} histogram"
    running = 0
    for place, edge in enumerate(buckets):
        running += int(words[place])
        yield f'quire:{name}_bucket{{{labels},le="{float(edge)}"}} {running}'
    running += int(words[len(buckets)])
    yield f'quire:{name}_bucket{{{labels},le="+Inf"}} {running}'
    yield f"quire:{name}_count{{{labels}}} {running}"
    yield f"quire:{name}_sum{{{labels}}} {float(words[len(buckets) + 1])}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
