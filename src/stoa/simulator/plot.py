"""A run over time as an SVG drawing, without dependencies: three panels over one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stoa.simulator.drawing import (
    LEFT,
    ON_DEMAND,
    PANEL,
    PAPER,
    RIGHT,
    SPOT,
    WIDTH,
    Floats,
    area,
    drawing,
    legend,
    line,
    mark,
    panel,
    panel_top,
    round_up,
)
from stoa.simulator.result import Result

_MOST_POINTS = 400
_STACK = (
    ("ready_spot", "spot", SPOT), ("ready_on_demand", "on demand", ON_DEMAND),
    ("starting", "starting", "#d9b36c"), ("draining", "draining", "#a9a48f"),
)  # fmt: skip
_STEPS_S = (600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 2 * 86_400, 7 * 86_400, 30 * 86_400)


def draw(result: Result, title: str) -> str:
    """Attainment and requests per second; replicas by market and state; cost per hour and in all."""
    t = _thin(result.timeline)
    end_s = float(t["t_s"][-1]) if len(t["t_s"]) else 1.0
    x = LEFT + (WIDTH - LEFT - RIGHT) * t["t_s"] / max(end_s, 1e-9)
    tops = [panel_top(i) for i in range(3)]
    parts = [
        panel(tops[0], "attainment", 1.0, "%"), *_attainment(tops[0], x, t, result), *_replicas(tops[1], x, t),
        *_cost(tops[2], x, t, result), _axis(tops[2] + PANEL, end_s),
    ]  # fmt: skip
    return drawing(title, 3, parts)


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
    most = round_up(float(rate.max(initial=0.0)))
    return [
        line(x, top + PANEL * (1 - rate / most), "#d9b36c", 1.0),
        line(x, top + PANEL * (1 - share), "#b5502b", 1.4),
        legend(top, 0, f"in time: {100 * result.attainment:.2f} %", "#b5502b"),
        legend(top, 1, f"requests/s, top {most:g}", "#d9b36c"),
    ]


def _replicas(top: int, x: Floats, t: Mapping[str, Floats]) -> list[str]:
    total = sum((t[name] for name, _, _ in _STACK), np.zeros(len(x)))
    most = round_up(float(total.max(initial=0.0)))
    parts = [panel(top, "replicas", most, "")]
    below = np.zeros(len(x))
    for place, (name, label, colour) in enumerate(_STACK):
        above = below + t[name]
        parts += [area(x, below, above, top, most, colour), legend(top, place, label, colour)]
        below = above
    return parts


def _cost(top: int, x: Floats, t: Mapping[str, Floats], result: Result) -> list[str]:
    most = round_up(float(t["hourly_usd"].max(initial=0.0)))
    parts = [
        panel(top, "USD per hour", most, ""),
        line(x, top + PANEL * (1 - t["hourly_usd"] / most), ON_DEMAND, 1.4),
        legend(top, 0, f"in all: {result.cost_usd:.2f} USD", ON_DEMAND),
    ]
    for place, (market, usd) in enumerate(result.cost.items(), 1):
        parts.append(legend(top, place, f"{market.replace('_', ' ')}: {usd:.2f}", PAPER))
    return parts


def _axis(top: int, end_s: float) -> str:
    step_s = next(
        (s for s in _STEPS_S if end_s / s <= 10), _STEPS_S[-1] * max(1, int(end_s / _STEPS_S[-1] / 10))
    )
    marks = []
    for at_s in np.arange(0, end_s + 1e-9, step_s):
        x = LEFT + (WIDTH - LEFT - RIGHT) * at_s / max(end_s, 1e-9)
        label = f"{at_s / 3600:g} h" if step_s < 86_400 else f"{at_s / 86_400:g} d"
        marks.append(mark(x, top, label))
    return "".join(marks)
