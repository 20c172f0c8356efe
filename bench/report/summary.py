"""From records to figures: medians over the rounds, ratios of quire to each peer, and the distance to the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.machine import MAX_OTHER_CORES
from bench.report.limits import Machine, Shape
from bench.report.workloads import Sizes

Record = dict[str, Any]
OURS = "quire"


@dataclass(frozen=True)
class Metric:
    """One figure of one work. more: whether more is better."""

    work: str
    name: str
    title: str
    unit: str
    more: bool


@dataclass
class Row:
    """One metric of all engines. values: medians by engine. rounds: what they are the medians of, by engine and round. disturbed: engines
    that had no round without others on the machine. limit: what the machine allows, if it can be computed."""

    metric: Metric
    values: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, dict[int, float]] = field(default_factory=dict)
    disturbed: set[str] = field(default_factory=set)
    limit: float | None = None

    def lead(self, peer: str) -> float | None:
        """How many times better quire is than `peer`: above 1 is ahead, whichever direction the metric has. In the rounds that both were
        in, if there are any: the machine changes from round to round.
        """
        ours, theirs = self.values.get(OURS), self.values.get(peer)
        if not ours or not theirs or peer == OURS:
            return None
        both = self.rounds.get(OURS, {}).keys() & self.rounds.get(peer, {}).keys()
        if both:
            ours, theirs = (statistics.median(self.rounds[engine][number] for number in both) for engine in (OURS, peer))
        return ours / theirs if self.metric.more else theirs / ours

    def of_limit(self, engine: str) -> float | None:
        """The share of the limit an engine reaches; 1 is all of it."""
        value = self.values.get(engine)
        if not value or not self.limit:
            return None
        return value / self.limit if self.metric.more else self.limit / value


def metrics(sizes: Sizes) -> list[Metric]:
    """All that a report shows, in its order."""
    found = [
        Metric("a", "output_tokens_per_s", f"a: {sizes.offline} requests at once, {sizes.length} in and out", "output tokens/s", True),
        Metric("b", "output_tokens_per_s", f"b: {sizes.offline} requests, lengths as in a chat log", "output tokens/s", True),
        Metric("c", "inter_token_ms", f"c: one stream of {sizes.stream_in} in, time per token", "ms", False),
        Metric("c", "ttft_ms", f"c: one stream of {sizes.stream_in} in, first token", "ms", False),
        Metric("e", "cold_ttft_ms", f"e: prompt of {sizes.prefix + 32}, first token", "ms", False),
        Metric("e", "warm_ttft_ms", f"e: the same prefix of {sizes.prefix} again, first token", "ms", False),
        Metric("e", "rest_s", f"e: {sizes.shared - 2} more with that prefix", "s", False),
    ]
    for work, levels in (("d", sizes.levels), ("tiny", sizes.tiny_levels)):
        what = f"{sizes.online_in} in, {sizes.online_out} out" if work == "d" else f"2.4 M parameters, 32 in, {sizes.length} out"
        for level, _ in levels:
            title = f"{work}: {level} stream{'s' * (level > 1)} over HTTP, {what}"
            found += [
                Metric(f"{work}@{level}", "output_tokens_per_s", title, "output tokens/s", True),
                Metric(f"{work}@{level}", "inter_token_p99_ms", f"{title}, time per token p99", "ms", False),
                Metric(f"{work}@{level}", "ttft_ms", f"{title}, first token p50", "ms", False),
            ]
    return [
        *found,
        Metric("he_cold", "ttft_ms", "e over HTTP, first token", "ms", False),
        Metric("he_warm", "ttft_ms", "e over HTTP, prefix cached, 32 streams, first token p50", "ms", False),
        Metric(f"tiny@{sizes.tiny_levels[-1][0]}", "memory_mib", "memory of all processes after the tiny model's load", "MiB", False),
        Metric("start", "ready_s", "offline: from process start to the first answer", "s", False),
        Metric("server_start", "ready_s", "server: from command to /v1/models", "s", False),
        Metric("server_start", "memory_mib", "server: memory when ready", "MiB", False),
        Metric("tiny_start", "ready_s", "tiny model's server: from command to /v1/models", "s", False),
    ]


def rows(records: Sequence[Record], sizes: Sizes, limits: dict[tuple[str, str], float]) -> list[Row]:
    """The metrics somebody has a value of. limits: by work and name."""
    found = []
    for metric in metrics(sizes):
        row = Row(metric, limit=limits.get((metric.work, metric.name)))
        for engine in dict.fromkeys(record["engine"] for record in records):
            own = [each for each in records if each["engine"] == engine and each["work"] == metric.work and metric.name in each]
            quiet = [each for each in own if not disturbed(each)]
            if own:
                row.values[engine] = statistics.median(each[metric.name] for each in quiet or own)
                row.rounds[engine] = {int(each["round"]): each[metric.name] for each in quiet or own}
                if not quiet:
                    row.disturbed.add(engine)
        if row.values:
            found.append(row)
    return found


def disturbed(record: Record) -> bool:
    """Whether others used so much of the machine meanwhile that the record says little."""
    return bool(record.get("other_cores", 0.0) > MAX_OTHER_CORES)


def machine_of(records: Sequence[Record]) -> Machine | None:
    """The best that was measured in any round: a limit is what the machine can do, not what it did while others used it."""
    measured = [record for record in records if record["work"] == "limits"]
    if not measured:
        return None
    return Machine(max(each["bandwidth"] for each in measured), max(each["flops"] for each in measured))


def limits_of(machine: Machine, shape: Shape, sizes: Sizes, requests: dict[str, list[tuple[int, int]]]) -> dict[tuple[str, str], float]:
    """What the machine allows, by work and metric. requests: (tokens in, out) by work."""
    found = {}
    for work in ("a", "b"):
        found[work, "output_tokens_per_s"] = sum(out for _, out in requests[work]) / machine.offline_s(shape, requests[work])
    context = sizes.stream_in + sizes.stream_out / 2
    found["c", "inter_token_ms"] = machine.step_s(shape, 1, context) * 1e3
    found["c", "ttft_ms"] = machine.prompt_s(shape, sizes.stream_in) * 1e3
    found["e", "cold_ttft_ms"] = machine.prompt_s(shape, sizes.prefix + 32) * 1e3
    found["e", "warm_ttft_ms"] = machine.prompt_s(shape, 32) * 1e3
    for level, _ in sizes.levels:
        context = sizes.online_in + sizes.online_out / 2
        # In the steady state each token comes with its share of a prompt.
        each = machine.step_s(shape, level, context) / level + machine.prompt_s(shape, level * sizes.online_in) / level / sizes.online_out
        found[f"d@{level}", "output_tokens_per_s"] = 1 / each
    return found
