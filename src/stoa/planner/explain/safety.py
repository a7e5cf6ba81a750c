"""What is bought for safety and what that costs, and what each way of buying saves: with and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from stoa.planner.explain.relaxation import Cost, costs, free, known_usd
from stoa.planner.plan import Plan
from stoa.planner.problem import PURCHASES, Problem, Purchase, Scenario

Kind = Literal["safety", "option"]
OPTION_WORDS: dict[Purchase, str] = {
    "owned": "the machines that are owned", "reserved": "reserving machines", "on_demand": "renting by the hour",
    "spot": "spot machines",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bought:
    """`usd` over the horizon: what a promise costs, or an option saves, by the plan that was found without it; the cheapest
    would say something from `least_usd` to `most_usd`. `share`: of the cost. None: without it there is no plan."""

    kind: Kind
    what: str
    usd: float | None = None
    share: float | None = None
    least_usd: float = 0.0
    most_usd: float = 0.0


def safety(problem: Problem, *, whole: Plan | None = None) -> tuple[Bought, ...]:
    """One by one, all else as it is: two together may cost less or more than their sum. A budget does not count here.
    `whole`: reckon with whole machines, and compare with this plan. NoOptimum for a problem without a plan."""
    base = free(problem)
    asked = [*_promises(base), *_options(base)]
    others = costs([each for _, _, each in asked], whole=whole is not None)
    base_usd = known_usd(problem, whole)
    return tuple(
        _bought(kind, what, base_usd, other) for (kind, what, _), other in zip(asked, others, strict=True)
    )


def _bought(kind: Kind, what: str, base_usd: float, other: Cost | None) -> Bought:
    """The plan is what it is; how much cheaper or dearer the other could be is known within bounds."""
    if other is None:
        return Bought(kind, what)
    ends = (other.usd - base_usd, other.least_usd - base_usd)
    found, further = (max(0.0, -end if kind == "safety" else end) for end in ends)
    share = found / base_usd if base_usd else 0.0
    return Bought(kind, what, found, share, min(found, further), max(found, further))


_Asked = tuple[Kind, str, Problem]


def _promises(problem: Problem) -> Iterable[_Asked]:
    """Without each promise, and without any if there are several."""
    each = list(_dropped(problem))
    none = problem
    for what, drop in each:
        yield "safety", what, drop(problem)
        none = drop(none)
    if len(each) > 1:
        yield "safety", "all of these together", none


def _dropped(problem: Problem) -> Iterable[tuple[str, Callable[[Problem], Problem]]]:
    rules = problem.rules
    if any(m > 1 for m in rules.margin):
        yield f"room for peaks within a period (x {_between(rules.margin)})", _with_rules(margin=())
    if rules.survive_place:
        yield "surviving the loss of any one place", _with_rules(survive_place=False)
    if rules.survive_spot:
        yield "surviving the loss of all spot machines of a place", _with_rules(survive_spot=False)
    everywhere = frozenset(p.name for p in problem.places)
    for number, group in enumerate(problem.groups):
        if group.places < everywhere and any(b.group == group.name and any(b.rates) for b in problem.buckets):
            yield (
                f"keeping {group.name} at {', '.join(sorted(group.places))}",
                _everywhere(number, everywhere),
            )
    if len(problem.scenarios) > 1:
        names = ", ".join(s.name for s in problem.scenarios)
        mean = (_mean(problem.scenarios),)
        yield (
            f"being ready for each of {names}, not only for their mean",
            lambda p: replace(p, scenarios=mean),
        )


def _with_rules(**changes: Any) -> Callable[[Problem], Problem]:
    return lambda problem: replace(problem, rules=replace(problem.rules, **changes))


def _everywhere(number: int, places: frozenset[str]) -> Callable[[Problem], Problem]:
    def drop(problem: Problem) -> Problem:
        groups = list(problem.groups)
        groups[number] = replace(groups[number], places=places)
        return replace(problem, groups=tuple(groups))

    return drop


def _between(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"


def _mean(scenarios: tuple[Scenario, ...]) -> Scenario:
    factors = np.average([s.factors for s in scenarios], axis=0, weights=[s.probability for s in scenarios])
    return Scenario("mean", 1.0, tuple(factors.tolist()))


def _options(problem: Problem) -> Iterable[_Asked]:
    """Without each way of buying; what is committed to already stays."""
    for purchase in PURCHASES:
        if any(o.purchase == purchase and o.limit != 0 for o in problem.offers):
            offers = tuple(
                replace(
                    o, limit=problem.committed.get((o.place, o.machine), 0) if purchase == "reserved" else 0
                )
                if o.purchase == purchase
                else o
                for o in problem.offers
            )
            yield "option", OPTION_WORDS[purchase], replace(problem, offers=offers)
    if problem.apis:
        yield "option", "hosted models paid by the token", replace(problem, apis=())
