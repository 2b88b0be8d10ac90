"""Plots the time and memory of the rows of a table as SVG, from the JSON of a run alone."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _GAP = 400, 250, 58, 44, 34, 24
_COLOURS = ("#1f6f8b", "#c8553d", "#5b8c5a", "#8e6c8a")
_PANELS = (("load_s", "load after imports, s", 1.0), ("anon_peak", "peak anonymous memory, MB", 1e-6))


def plots_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return {file name: SVG} for every table that names a plot."""
    return {f"{table['name']}.svg": _svg(table) for table in data["tables"] if table.get("plot")}


def _svg(table: Mapping[str, Any]) -> str:
    width = len(_PANELS) * (_WIDTH + _GAP)
    series = _series(table)
    size = f'width="{width}" height="{_HEIGHT + 26}"'
    style = f'viewBox="0 0 {width} {_HEIGHT + 26}" font-family="sans-serif" font-size="11" fill="#333"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', f'<rect {size} fill="#fff"/>']
    for number, (figure, title, scale) in enumerate(_PANELS):
        lines = {
            label: [(x, row["median"][figure] * scale) for x, row in rows] for label, rows in series.items()
        }
        parts.append(f'<g transform="translate({number * (_WIDTH + _GAP)} 0)">')
        parts += [*_panel(title, table["plot"], lines), "</g>"]
    parts += _legend(list(series))
    return "\n".join([*parts, "</svg>", ""])


def _series(table: Mapping[str, Any]) -> dict[str, list[tuple[float, Any]]]:
    """Return the rows that have figures, grouped by loader, each with its place on the x axis."""
    found: dict[str, list[tuple[float, Any]]] = {}
    for row in table["rows"]:
        if row["runs"]:
            label = row["label"].partition(",")[0].replace("`", "")
            found.setdefault(label, []).append((row["x"], row))
    return {label: sorted(rows, key=lambda pair: pair[0]) for label, rows in found.items()}


def _panel(title: str, x_title: str, lines: Mapping[str, Sequence[Point]]) -> list[str]:
    x_most = max((x for points in lines.values() for x, _ in points), default=1)
    y_most = max((y for points in lines.values() for _, y in points), default=1)
    x_step, y_step = _step(x_most), _step(y_most)
    x_top, y_top = _round_up(x_most, x_step), _round_up(y_most, y_step)
    right, bottom = _WIDTH - 12, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / x_top * (right - _LEFT), bottom - y / y_top * (bottom - _TOP)

    parts = [f'<text x="{_LEFT}" y="18" font-size="12" font-weight="bold">{escape(title)}</text>']
    for tick in _ticks(y_top, y_step):
        _, y = at(0, tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(x_top, x_step):
        x, _ = at(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 34}" text-anchor="middle">{escape(x_title)}</text>')
    for colour, points in zip(_COLOURS, lines.values(), strict=False):
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return parts


def _legend(labels: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for colour, label in zip(_COLOURS, labels, strict=False):
        y = _HEIGHT + 8
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="{y + 6}">{escape(label)}</text>')
        x += 40 + 6.2 * len(label)
    return parts


def _step(most: float) -> float:
    """Return a round distance between ticks that gives three to six of them."""
    if most <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= most:
        power *= 10
    while power > most:
        power /= 10
    return next(power * share for share in (0.2, 0.5, 1, 2) if most <= 5.5 * power * share)


def _round_up(value: float, step: float) -> float:
    return max(1, -int(-value // step)) * step


def _ticks(top: float, step: float) -> list[float]:
    return [step * number for number in range(round(top / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
