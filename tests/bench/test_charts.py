"""The hand-written SVG is XML, and its lengths are the numbers."""

from __future__ import annotations

from xml.etree import ElementTree

from bench import svg

NS = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_values() -> None:
    root = ElementTree.fromstring(svg.bars([svg.Bars("a < b & c", "tokens/s", [("quire", 200.0), ("peer", 50.0)], limit=400.0)]))
    widths = [float(bar.attrib["width"]) for bar in list(root.iter(f"{NS}rect"))[1:]]
    assert [round(width) for width in widths] == [svg.BAR_WIDTH // 2, svg.BAR_WIDTH // 8]
    texts = [text.text for text in root.iter(f"{NS}text")]
    assert "a < b & c (tokens/s)" in texts and "limit 400" in texts


def test_lines_lie_where_their_logarithms_do() -> None:
    panel = svg.Lines("growth", "rows", "us", {"step": [(1, 1.0), (10, 10.0), (100, 100.0)]})
    root = ElementTree.fromstring(svg.lines([panel]))
    (line,) = root.iter(f"{NS}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert [round(x - points[0][0]) for x, _ in points] == [0, svg.PLOT_WIDTH / 2, svg.PLOT_WIDTH]
    assert [round(points[0][1] - y) for _, y in points] == [0, svg.PLOT_HEIGHT / 2, svg.PLOT_HEIGHT]


def test_numbers_keep_three_digits() -> None:
    assert [svg.number(value) for value in (0, 0.01234, 1.5, 12.34, 123456.0)] == ["0", "0.0123", "1.50", "12.3", "123,456"]
