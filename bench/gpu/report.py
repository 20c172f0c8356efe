"""The table at the end: what was measured, as a percentage of what this machine allows, and whether it is what we promise."""

from __future__ import annotations

from typing import Any

from bench.gpu.part import shown

# Part, beginning of a line's name, figure, and the least (or with "<" the most) that is promised for it.
PROMISES: tuple[tuple[str, str, str, str], ...] = (
    *(("attention_cases", f"decode {sizes}", "of_limit_%", "> 85") for sizes in ("1 x 64k", "8 x 8k", "64 x 1k", "64 x 4k", "256 x 1k")),
    *(("steps", f"steps {rows} x 1024, profiled", "gap_between_steps_us", "< 100") for rows in (1, 64, 256)),
    ("engine", "decode 1 x 1024", "of_limit_%", "> 83"),
    ("engine", "decode 64 x 1024", "of_limit_%", "> 81"),
    ("engine", "decode 256 x 1024", "of_limit_%", "> 78"),
    ("engine", "offline 1000", "of_limit_%", "> 79"),
    ("engine", "ready", "seconds", "< 10"),
)
SLOWEST = 6


def ceilings(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """bytes_per_s of copies and flop_per_s of large products, the best that was seen; empty unless both were."""
    best: dict[str, float] = {}
    for label, line in results.items():
        for kind, name in (("copy", "bytes_per_s"), ("gemm", "flop_per_s")):
            if label.startswith(kind) and line.get(name):
                best[name] = max(best.get(name, 0.0), line[name])
    return best if len(best) == 2 else {}


def text(document: dict[str, Any], dry: bool) -> str:
    """All of it, for a terminal."""
    parts, lines = document["parts"], ["", "=" * 100]
    if document["ceilings"]:
        by_bytes, by_flops = document["ceilings"]["bytes_per_s"], document["ceilings"]["flop_per_s"]
        lines.append(f"ceilings: copy {by_bytes / 1e9:,.0f} GB/s, bf16 product {by_flops / 1e12:,.0f} TFLOP/s")
    lines += _measured(parts)
    lines += _compared(parts)
    lines += ["", "promises"] + [_promise(parts, *promise) for promise in PROMISES] if not dry else []
    lines += _hints(parts)
    lines += ["", f"parts, {document['seconds']} s in all"]
    for name, part in parts.items():
        lines.append(f"  {name:20s} {part['status']:10s} {part['seconds']:6.1f} s")
        lines += [f"    wrong: {what.splitlines()[-1][:150]}" for what in part["wrong"][:8]]
        lines += [f"    skipped {what}: {reason[:150]}" for what, reason in part["skipped"].items()]
    return "\n".join(lines)


def _measured(parts: dict[str, Any]) -> list[str]:
    """Every line that has a limit."""
    lines = []
    for part in parts.values():
        for name, line in part["results"].items():
            if line.get("of_limit_%") is not None:
                others = "  ".join(f"{key} {shown(value)}" for key, value in line.items() if key not in ("of_limit_%", "error"))
                lines.append(f"  {name:34s} {line['of_limit_%']:5.1f} % of limit   {others}")
    return ["", "measured, as a share of what the ceilings allow", *lines] if lines else []


def _compared(parts: dict[str, Any]) -> list[str]:
    """quire beside the Transformers library, on the requests that both had."""
    ours, theirs = (parts.get(name, {}).get("results", {}) for name in ("engine", "transformers_peer"))
    lines = [
        f"  {name:34s} quire {shown(ours[name]['out_tok_s'])}, Transformers {shown(theirs[name]['out_tok_s'])} output tokens/s: "
        f"{ours[name]['out_tok_s'] / theirs[name]['out_tok_s']:.2f} x"
        for name in theirs
        if name in ours and theirs[name].get("out_tok_s")
    ]
    return ["", "beside the Transformers library's continuous batching", *lines] if lines else []


def _promise(parts: dict[str, Any], part: str, start: str, figure: str, wanted: str) -> str:
    results = parts.get(part, {}).get("results", {})
    found = next((line[figure] for name, line in results.items() if name.startswith(start) and line.get(figure) is not None), None)
    label = f"{part}: {start}, {figure} {wanted}"
    if found is None:
        return f"  not run   {label}"
    kept = found > float(wanted[1:]) if wanted[0] == ">" else found < float(wanted[1:])
    return f"  {'kept' if kept else 'MISSED':9s} {label}: {found:.4g}"


def _hints(parts: dict[str, Any]) -> list[str]:
    """How to look into what is furthest from its limit."""
    lines = ["", "to look closer"]
    for module in ("attention_cases", "small_cases"):
        results = parts.get(module, {}).get("results", {})
        far = sorted((line["of_limit_%"], name) for name, line in results.items() if line.get("of_limit_%") is not None and line["us"] > 20)
        for percent, name in far[: SLOWEST // 2]:
            command = f"python3 -m bench.gpu.{module} --out $OUT/case.json --only '{name}'"
            lines.append(f"  {percent:.0f} %: ncu --set full --clock-control none -o $OUT/kernel {command}")
    lines.append(
        "  what a decode step consists of: the lines of part steps, or nsys profile -t cuda python3 -m bench.gpu.steps --out $OUT/s.json"
    )
    return lines
