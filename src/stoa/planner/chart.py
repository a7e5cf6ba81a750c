"""A plan over its periods as an SVG drawing: cost by place, machines against the work there is for them, who answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stoa.planner.explain import facts, work
from stoa.planner.explain.text import beginning, usd
from stoa.planner.plan import Plan, Pool, likely_routes
from stoa.planner.problem import PURCHASES, Problem, Purchase
from stoa.simulator.drawing import (
    INK,
    LEFT,
    ON_DEMAND,
    PANEL,
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

_PLACES = ("#5b7a99", "#7d8a5c", "#d9b36c", "#b5502b", "#8a6d8f", "#a9a48f", "#4f8a8b")
_PAID: Mapping[Purchase, tuple[str, str]] = {
    "owned": ("owned", "#d9b36c"), "reserved": ("reserved", "#8a6d8f"), "on_demand": ("by the hour", ON_DEMAND),
    "spot": ("spot", SPOT),
}  # fmt: skip
_OWN, _HOSTED = "#5b7a99", "#d9b36c"
_LABEL = 18  # letters that fit beside a panel
_LETTER = 7.0  # pixels of one


def draw(plan: Plan, problem: Problem) -> str:
    """Three panels over the periods, each as wide as its hours in all: USD an hour by place; replicas that are there, by
    how they are paid for, and how many are needed; requests a second by who answers them."""
    x = _edges(problem)
    tops = [panel_top(i) for i in range(3)]
    month = 720 / problem.horizon_h
    title = f"{usd(plan.costs.total * month)} USD per 30 days"
    parts = [
        *_cost(tops[0], x, plan, problem), *_replicas(tops[1], x, plan, problem), *_requests(tops[2], x, plan, problem),
        *_names(tops[2] + PANEL, problem),
    ]  # fmt: skip
    return drawing(title, 3, parts)


def _edges(problem: Problem) -> Floats:
    """Both ends of each period, in pixels."""
    ends = np.cumsum(problem.hours)
    x: Floats = np.repeat(np.concatenate([[0.0], ends]), 2)[1:-1]
    return np.asarray(LEFT + (WIDTH - LEFT - RIGHT) * x / ends[-1], np.float64)


def _steps(values: Sequence[float]) -> Floats:
    return np.repeat(np.asarray(values, np.float64), 2)


# -- panels


def _cost(top: int, x: Floats, plan: Plan, problem: Problem) -> Iterable[str]:
    by_place = {place: v for place, v in facts.usd_by_place(plan, problem).items() if any(v)}
    layers = [
        (place, _PLACES[i % len(_PLACES)], values) for i, (place, values) in enumerate(by_place.items())
    ]
    return _stack(top, x, "USD per hour, by place", layers)


def _replicas(top: int, x: Floats, plan: Plan, problem: Problem) -> Iterable[str]:
    there = work.there(plan, problem)
    layers = [(*_PAID[purchase], there[purchase]) for purchase in PURCHASES if any(there[purchase])]
    needed, mean = work.work(plan, problem)
    yield from _stack(
        top,
        x,
        "replicas that are there on average, and how many the requests need",
        layers,
        least=max(needed),
    )
    most = _top(layers, max(needed))
    for place, (values, label, dash) in enumerate(
        ((needed, "with margin", ""), (mean, "mean (dashed)", "4 3")), len(layers)
    ):
        yield line(x, top + PANEL * (1 - _steps(values) / most), INK, 1.4, dash)
        yield legend(top, place, label, INK)


def _requests(top: int, x: Floats, plan: Plan, problem: Problem) -> Iterable[str]:
    own = [0.0] * len(problem.periods)
    hosted = [0.0] * len(problem.periods)
    for route, rates in likely_routes(problem, plan.routes):
        to = own if isinstance(route.target, Pool) else hosted
        for t, rate in enumerate(rates):
            to[t] += rate
    layers = [("machines", _OWN, own), ("hosted models", _HOSTED, hosted)]
    return _stack(top, x, "requests per second, by who answers", [each for each in layers if any(each[2])])


Layer = tuple[str, str, Sequence[float]]


def _stack(top: int, x: Floats, name: str, layers: Sequence[Layer], least: float = 0.0) -> Iterable[str]:
    """Areas one on the other, the first at the bottom. `least`: up to which the panel reaches at least."""
    most = _top(layers, least)
    yield panel(top, name, most)
    below = np.zeros(len(x))
    for place, (label, colour, values) in enumerate(layers):
        above = below + _steps(values)
        yield area(x, below, above, top, most, colour)
        yield legend(top, place, _short(label), colour)
        below = above


def _top(layers: Sequence[Layer], least: float) -> float:
    sums = np.sum([values for _, _, values in layers], axis=0) if layers else np.zeros(1)
    return round_up(max(float(np.max(sums)), least))


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


# -- the axis


def _names(top: int, problem: Problem) -> Iterable[str]:
    """Names of periods below their middles, as many as there is room for; hours of the clock where they begin."""
    ends = _edges(problem).reshape(-1, 2)
    free = -np.inf
    for period, (start, end) in zip(problem.periods, ends.tolist(), strict=True):
        begins = beginning(period.name)
        name, at = _short(begins), start if begins != period.name else (start + end) / 2
        half = len(name) * _LETTER / 2
        if at - half >= free:
            yield mark(at, top, name)
            free = at + half + _LETTER
