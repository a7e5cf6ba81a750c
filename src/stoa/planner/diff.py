"""What differs between two plans for the same problem, as facts and in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stoa.planner.explain.text import percent, spans
from stoa.planner.plan import Plan, Pool, Route, likely_routes
from stoa.planner.problem import Problem, Purchase

Floats = NDArray[np.float64]
_T = TypeVar("_T")
_EPS = 1e-6
_LEAST_SHARE = 0.005  # of a service's requests, to be worth a word


@dataclass(frozen=True, slots=True)
class Counted:
    """Machines of a pool under one purchase option, by period."""

    pool: Pool
    purchase: Purchase
    periods: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """Machines reserved for the whole horizon."""

    place: str
    machine: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A service's requests over the horizon. `share`: of them, those that are served elsewhere. `targets`: name, shares
    before and after; they may differ by less than what is moved, where requests of one size go and others come."""

    service: str
    share: float
    targets: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """USD over the horizon. `parts`: what for, before and after."""

    before: float
    after: float
    parts: tuple[tuple[str, float, float], ...]


Change = Counted | Committed | Moved | Spent


def diff(old: Plan, new: Plan, problem: Problem) -> tuple[Change, ...]:
    """Both plans in the order of the problem's periods and buckets. Machines first, then what is reserved, then routes, then
    the cost, which is always there unless it is the same."""
    return (
        *_counted(old, new, problem),
        *_committed(old, new),
        *_moved(old, new, problem),
        *_spent(old, new),
    )


def _counted(old: Plan, new: Plan, problem: Problem) -> Iterator[Counted]:
    names = tuple(p.name for p in problem.periods)
    none = (0,) * len(names)
    before = {(r.pool, r.purchase): r.counts for r in old.rented}
    after = {(r.pool, r.purchase): r.counts for r in new.rented}
    for pool, purchase in _both(before, after):
        counts = before.get((pool, purchase), none), after.get((pool, purchase), none)
        if counts[0] != counts[1]:
            yield Counted(pool, purchase, names, *counts)


def _committed(old: Plan, new: Plan) -> Iterator[Committed]:
    for key in _both(old.reserved, new.reserved):
        before, after = old.reserved.get(key, 0), new.reserved.get(key, 0)
        if before != after:
            yield Committed(*key, before, after)


def _both(old: Mapping[_T, object], new: Mapping[_T, object]) -> list[_T]:
    """Keys of either, each once, in the order of the old."""
    return list(dict.fromkeys([*old, *new]))


# -- routes


def _moved(old: Plan, new: Plan, problem: Problem) -> Iterator[Moved]:
    before, after = _requests(old, problem), _requests(new, problem)
    paths = _both(before, after)
    nothing = np.zeros(len(problem.periods))
    for service in [s.name for s in problem.services]:
        mine = [p for p in paths if problem.buckets[p[1]].service == service]
        served = sum((float(before.get(p, nothing).sum()) for p in mine), 0.0)
        asked = sum((float(after.get(p, nothing).sum()) for p in mine), 0.0)
        if not served or not asked:
            continue
        apart = sum(float(np.abs(after.get(p, nothing) - before.get(p, nothing)).sum()) for p in mine)
        share = apart / 2 / max(served, asked)
        if share > _EPS:
            targets: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for p in mine:
                targets[p[2]][0] += float(before.get(p, nothing).sum()) / served
                targets[p[2]][1] += float(after.get(p, nothing).sum()) / asked
            yield Moved(service, share, tuple((name, a, b) for name, (a, b) in targets.items()))


def _requests(plan: Plan, problem: Problem) -> dict[tuple[str, int, str], Floats]:
    """[T] likely requests by world, bucket and target; losses are none of them."""
    return {
        (route.world, route.bucket, _name(route)): np.array(rates) * problem.hours * 3600
        for route, rates in likely_routes(problem, plan.routes)
    }


def _name(route: Route) -> str:
    return route.target.name if isinstance(route.target, Pool) else f"the API {route.target}"


# -- cost


def _spent(old: Plan, new: Plan) -> Iterator[Spent]:
    parts = [
        (
            f"{_words(purchase)} machines",
            old.costs.machines.get(purchase, 0.0),
            new.costs.machines.get(purchase, 0.0),
        )
        for purchase in _both(old.costs.machines, new.costs.machines)
    ]
    parts += [("APIs", old.costs.api, new.costs.api), ("traffic", old.costs.network, new.costs.network)]
    changed = tuple((what, a, b) for what, a, b in parts if abs(a - b) > _EPS)
    if changed:
        yield Spent(old.costs.total, new.costs.total, changed)


# -- in words


def tell(changes: Sequence[Change]) -> str:
    """A line each; of moved requests and of costs, their parts below."""
    return "\n".join(line for change in changes for line in _lines(change)) or "nothing changes"


def _lines(change: Change) -> list[str]:
    match change:
        case Counted(pool, purchase, periods, before, after):
            return [f"{pool.name} ({_words(purchase)}): {_steps(periods, before, after)}"]
        case Committed(place, machine, before, after):
            return [f"reserved for the whole time, {machine} at {place}: {before} -> {after}"]
        case Moved(service, share, targets):
            head = f"{service}: {percent(share)} of its requests are served elsewhere"
            told = [(name, a, b) for name, a, b in targets if abs(a - b) >= _LEAST_SHARE]
            return [head, *(f"    {name}: {percent(a)} -> {percent(b)}" for name, a, b in told)]
        case Spent(before, after, parts):
            head = f"cost: {before:,.2f} USD -> {after:,.2f} USD{_relative(before, after)}"
            return [head, *(f"    {what}: {a:,.2f} USD -> {b:,.2f} USD" for what, a, b in parts)]


def _steps(periods: Sequence[str], before: Sequence[int], after: Sequence[int]) -> str:
    """By stretches of periods that change alike; those that do not change are left out."""
    pairs = list(zip(before, after, strict=True))
    stretches = groupby(range(len(pairs)), key=pairs.__getitem__)
    return "; ".join(f"{spans(periods, list(ts))}: {a} -> {b}" for (a, b), ts in stretches if a != b)


def _words(purchase: Purchase) -> str:
    return purchase.replace("_", "-")


def _relative(before: float, after: float) -> str:
    return f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
