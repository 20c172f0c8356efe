"""Charts as SVG text, written by hand so that a report needs no plotting library: panels of bars, and lines over logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#be185d")
FONT = 'font-family="sans-serif" font-size="12"'
BAR_HEIGHT, LABEL_WIDTH, BAR_WIDTH, MARGIN = 18, 150, 330, 14
PLOT_WIDTH, PLOT_HEIGHT = 460, 260


@dataclass
class Bars:
    """One panel: a bar per entry, and a line at the limit where there is one."""

    title: str
    unit: str
    entries: Sequence[tuple[str, float]]
    limit: float | None = None


@dataclass
class Lines:
    """One panel: a line per series of (x, y) points; both axes are logarithmic."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def bars(panels: Sequence[Bars]) -> str:
    """All panels below one another."""
    parts: list[str] = []
    y = MARGIN
    for panel in panels:
        y += 16
        parts.append(_text(MARGIN, y, f"{panel.title} ({panel.unit})", weight="bold"))
        y += 8
        top = y
        most = max([value for _, value in panel.entries] + [panel.limit or 0.0]) or 1.0
        for place, (label, value) in enumerate(panel.entries):
            width = BAR_WIDTH * value / most
            parts.append(_text(LABEL_WIDTH - 6, y + 13, label, anchor="end"))
            color = COLORS[place % len(COLORS)]
            parts.append(f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT - 4}" fill="{color}"/>')
            parts.append(_text(LABEL_WIDTH + width + 5, y + 13, number(value)))
            y += BAR_HEIGHT
        if panel.limit is not None:
            x = LABEL_WIDTH + BAR_WIDTH * panel.limit / most
            parts.append(f'<line x1="{x:.1f}" y1="{top - 3}" x2="{x:.1f}" y2="{y}" stroke="#111827" stroke-dasharray="4 3"/>')
            parts.append(_text(x, y + 11, f"limit {number(panel.limit)}", anchor="end" if panel.limit > most / 2 else "start"))
            y += 14
        y += 10
    return _document(LABEL_WIDTH + BAR_WIDTH + 90, y + MARGIN, parts)


def lines(panels: Sequence[Lines]) -> str:
    """All panels below one another."""
    parts: list[str] = []
    y = MARGIN
    for panel in panels:
        parts += _plot(panel, y)
        y += PLOT_HEIGHT + 75 + 16 * math.ceil(len(panel.series) / 3)
    return _document(PLOT_WIDTH + 110, y, parts)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _plot(panel: Lines, top: float) -> list[str]:
    points = [point for series in panel.series.values() for point in series]
    (left_x, right_x), (low_y, high_y) = _decades(x for x, _ in points), _decades(y for _, y in points)
    left, bottom = 70.0, top + 26 + PLOT_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, 10**left_x)) - left_x) / (right_x - left_x)
        up = (math.log10(max(y, 10**low_y)) - low_y) / (high_y - low_y)
        return left + PLOT_WIDTH * across, bottom - PLOT_HEIGHT * up

    parts = [_text(MARGIN, top + 14, panel.title, weight="bold")]
    for decade in range(left_x, right_x + 1):
        x = place(10**decade, 10**low_y)[0]
        parts.append(f'<line x1="{x:.1f}" y1="{bottom - PLOT_HEIGHT}" x2="{x:.1f}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(_text(x, bottom + 15, number(10**decade), anchor="middle"))
    for decade in range(low_y, high_y + 1):
        y = place(10**left_x, 10**decade)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + PLOT_WIDTH}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(left - 6, y + 4, number(10**decade), anchor="end"))
    parts.append(_text(left + PLOT_WIDTH / 2, bottom + 32, panel.x_label, anchor="middle"))
    parts.append(_text(left, top + 40 - 18, panel.y_label, anchor="start"))
    for at, (name, series) in enumerate(panel.series.items()):
        color = COLORS[at % len(COLORS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in series)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*place(x, y), color) for x, y in series]
        column, row = at % 3, at // 3
        parts.append(_text(left + column * 160, bottom + 50 + 16 * row, f"● {name}", fill=color))
    return parts


def _decades(values: object) -> tuple[int, int]:
    positive = [value for value in values if value > 0]  # type: ignore[attr-defined]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return low, max(high, low + 1)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", fill: str = "#111827") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}" {FONT}>{escape(text)}</text>'


def _document(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])
