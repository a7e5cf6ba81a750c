"""A run over time as an SVG drawing, without dependencies: three panels over one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoa.simulator.result import Result

Floats = NDArray[np.float64]
WIDTH, LEFT, RIGHT, TOP, PANEL, GAP = 960, 70, 150, 60, 130, 34
_MOST_POINTS = 400
_INK, _PAPER, _GRID = "#333", "#fffdf8", "#e4ddd0"
_STACK = (
    ("ready_spot", "spot", "#7d8a5c"), ("ready_on_demand", "on demand", "#5b7a99"),
    ("starting", "starting", "#d9b36c"), ("draining", "draining", "#a9a48f"),
)  # fmt: skip
_STEPS_S = (600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 2 * 86_400, 7 * 86_400, 30 * 86_400)


def draw(result: Result, title: str) -> str:
    """Attainment and requests per second; replicas by market and state; cost per hour and in all."""
    t = _thin(result.timeline)
    end_s = float(t["t_s"][-1]) if len(t["t_s"]) else 1.0
    x = LEFT + (WIDTH - LEFT - RIGHT) * t["t_s"] / max(end_s, 1e-9)
    heights = [TOP + i * (PANEL + GAP) for i in range(3)]
    parts = [
        _panel(heights[0], "attainment", 1.0, "%"), *_attainment(heights[0], x, t, result),
        *_replicas(heights[1], x, t), *_cost(heights[2], x, t, result), _axis(heights[2] + PANEL, end_s),
    ]  # fmt: skip
    height = heights[2] + PANEL + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}"><rect width="{WIDTH}" height="{height}" fill="{_PAPER}"/>'
        f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def _thin(timeline: Mapping[str, Sequence[float]]) -> dict[str, Floats]:
    """At most `_MOST_POINTS` points: sums of what is counted, means of what is."""
    columns = {name: np.asarray(values, np.float64) for name, values in timeline.items()}
    n = len(columns["t_s"])
    group = max(1, -(-n // _MOST_POINTS))
    starts = np.arange(0, n, group)
    if not n:
        return columns | {"span_s": np.zeros(0)}
    spans = np.diff(columns["t_s"], prepend=0.0)
    thin: dict[str, Floats] = {"span_s": np.add.reduceat(spans, starts)}
    for name, values in columns.items():
        if name == "t_s":
            thin[name] = values[np.minimum(starts + group - 1, n - 1)]
        elif name in ("arrivals", "late"):
            thin[name] = np.add.reduceat(values, starts)
        else:
            thin[name] = np.add.reduceat(values * spans, starts) / thin["span_s"]
    return thin


def _attainment(top: int, x: Floats, t: Mapping[str, Floats], result: Result) -> list[str]:
    share = np.clip(1 - t["late"] / np.maximum(t["arrivals"], 1), 0, 1)
    rate = t["arrivals"] / np.maximum(t["span_s"], 1e-9)
    most = _round_up(float(rate.max(initial=0.0)))
    return [
        _line(x, top + PANEL * (1 - rate / most), "#d9b36c", 1.0),
        _line(x, top + PANEL * (1 - share), "#b5502b", 1.4),
        _legend(top, 0, f"in time: {100 * result.attainment:.2f} %", "#b5502b"),
        _legend(top, 1, f"requests/s, top {most:g}", "#d9b36c"),
    ]


def _replicas(top: int, x: Floats, t: Mapping[str, Floats]) -> list[str]:
    total = sum((t[name] for name, _, _ in _STACK), np.zeros(len(x)))
    most = _round_up(float(total.max(initial=0.0)))
    parts = [_panel(top, "replicas", most, "")]
    below = np.zeros(len(x))
    for place, (name, label, colour) in enumerate(_STACK):
        above = below + t[name]
        edge = [
            *_points(x, top + PANEL * (1 - above / most)),
            *_points(x, top + PANEL * (1 - below / most))[::-1],
        ]
        parts += [f'<polygon points="{" ".join(edge)}" fill="{colour}"/>', _legend(top, place, label, colour)]
        below = above
    return parts


def _cost(top: int, x: Floats, t: Mapping[str, Floats], result: Result) -> list[str]:
    most = _round_up(float(t["hourly_usd"].max(initial=0.0)))
    parts = [
        _panel(top, "USD per hour", most, ""),
        _line(x, top + PANEL * (1 - t["hourly_usd"] / most), "#5b7a99", 1.4),
        _legend(top, 0, f"in all: {result.cost_usd:.2f} USD", "#5b7a99"),
    ]
    for place, (market, usd) in enumerate(result.cost.items(), 1):
        parts.append(_legend(top, place, f"{market.replace('_', ' ')}: {usd:.2f}", _PAPER))
    return parts


def _panel(top: int, name: str, most: float, unit: str) -> str:
    right = WIDTH - RIGHT
    lines = []
    for share in (0, 0.5, 1):
        y = top + PANEL * (1 - share)
        label = f"{100 * share:.0f} %" if unit == "%" else f"{most * share:g}"
        lines.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    return "".join(lines) + f'<text x="{LEFT}" y="{top - 6}" font-weight="600">{name}</text>'


def _axis(top: int, end_s: float) -> str:
    step_s = next(
        (s for s in _STEPS_S if end_s / s <= 10), _STEPS_S[-1] * max(1, int(end_s / _STEPS_S[-1] / 10))
    )
    marks = []
    for at_s in np.arange(0, end_s + 1e-9, step_s):
        x = LEFT + (WIDTH - LEFT - RIGHT) * at_s / max(end_s, 1e-9)
        label = f"{at_s / 3600:g} h" if step_s < 86_400 else f"{at_s / 86_400:g} d"
        marks.append(f'<text x="{x:.1f}" y="{top + 18}" text-anchor="middle">{label}</text>')
    return "".join(marks)


def _legend(top: int, place: int, label: str, colour: str) -> str:
    y = top + 10 + 18 * place
    return (
        f'<rect x="{WIDTH - RIGHT + 10}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{WIDTH - RIGHT + 25}" y="{y}">{escape(label)}</text>'
    )


def _line(x: Floats, y: Floats, colour: str, width: float) -> str:
    return (
        f'<polyline points="{" ".join(_points(x, y))}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    )


def _points(x: Floats, y: Floats) -> list[str]:
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]


def _round_up(value: Any) -> float:
    """A round number at or above."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9)))
