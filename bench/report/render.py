"""A report as Markdown, JSON and SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import svg
from bench.machine import MAX_OTHER_CORES
from bench.report.limits import Machine
from bench.report.summary import OURS, Record, Row, disturbed


def write(out: Path, about: dict[str, Any], machine: Machine | None, rows: Sequence[Row], records: Sequence[Record]) -> None:
    """report.md, report.json and report.svg in `out`. about: versions, flags, machine and date."""
    (out / "report.md").write_text(markdown(about, machine, rows, records))
    (out / "report.json").write_text(json.dumps(document(about, machine, rows, records), indent=1) + "\n")
    (out / "report.svg").write_text(chart(rows))


def document(about: dict[str, Any], machine: Machine | None, rows: Sequence[Row], records: Sequence[Record]) -> dict[str, Any]:
    return {
        "about": about,
        "machine": machine and {"read_gb_per_s": round(machine.bandwidth / 1e9, 2), "gemm_tflops": round(machine.flops / 1e12, 3)},
        "figures": [
            {
                "work": row.metric.work,
                "metric": row.metric.name,
                "title": row.metric.title,
                "unit": row.metric.unit,
                "values": {engine: _short(value) for engine, value in row.values.items()},
                "disturbed": sorted(row.disturbed),
                "limit": row.limit and _short(row.limit),
                "quire_leads_by": {peer: _short(lead) for peer in row.values if (lead := row.lead(peer)) is not None},
                "of_limit": {engine: _short(share) for engine in row.values if (share := row.of_limit(engine)) is not None},
            }
            for row in rows
        ],
        "records": list(records),
    }


def markdown(about: dict[str, Any], machine: Machine | None, rows: Sequence[Row], records: Sequence[Record]) -> str:
    engines = list(dict.fromkeys(engine for row in rows for engine in row.values))
    lines = ["# Benchmark report", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    if machine is not None:
        read, rate = svg.number(machine.bandwidth / 1e9), svg.number(machine.flops / 1e12)
        lines.append(f"- measured limits: {read} GB/s read, {rate} TFLOP/s in matrix products")
    lines += [
        "",
        "Medians over the rounds. In brackets: how many times better quire is than that engine (above 1: ahead, for times as for rates).",
        f"A star marks figures without a round in which others used at most {MAX_OTHER_CORES} cores. *Of limit*: the share of what",
        "memory bandwidth and matrix rate allow that quire reaches.",
        "",
        f"| | unit | {' | '.join(engines)} | limit | of limit |",
        f"|---|---|{'---|' * len(engines)}---|---|",
    ]
    for row in rows:
        cells = [_cell(row, engine) for engine in engines]
        share = row.of_limit(OURS)
        limit = svg.number(row.limit) if row.limit else ""
        lines.append(
            f"| {row.metric.title} | {row.metric.unit} | {' | '.join(cells)} | {limit} | {f'{100 * share:.0f} %' if share else ''} |"
        )
    failures = [record for record in records if "error" in record]
    if failures:
        lines += ["", "## What failed", ""]
        lines += [f"- round {each['round'] + 1}, {each['engine']}, {each['work']}: {each['error']}" for each in failures]
    count = sum(disturbed(record) for record in records)
    lines += ["", f"{count} of {len(records)} records are left out of the medians where a quieter one exists.", ""]
    return "\n".join(lines)


def chart(rows: Sequence[Row]) -> str:
    return svg.bars([svg.Bars(row.metric.title, row.metric.unit, list(row.values.items()), row.limit) for row in rows])


def _cell(row: Row, engine: str) -> str:
    value = row.values.get(engine)
    if value is None:
        return ""
    lead = row.lead(engine)
    star = "*" if engine in row.disturbed else ""
    return f"{svg.number(value)}{star}" + (f" ({lead:.2f})" if lead is not None else "")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
