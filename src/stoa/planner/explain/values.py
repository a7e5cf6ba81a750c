"""What is scarce and what one more of it would save; what serving each kind of request costs.

Row and column duals of the relaxation tell which limits bind. A dual is the saving of the first little bit, and at a corner
there are several; what is reported is the difference to the same with one more, which in the relaxation is never above it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from stoa.planner.explain.relaxation import Relaxation, costs, free, known_usd, relaxation
from stoa.planner.plan import Plan
from stoa.planner.problem import Offer, Problem
from stoa.planner.program.view import HOUR_S
from stoa.programs import Floats, Places

T = TypeVar("T")
_LITTLE_USD = 1e-6  # a saving, relative to the cost, that is none
_MOST = 10  # scarce things looked at: owned machines, then the dearest
_MOST_WHOLE = 5  # ... with whole machines
_MORE = 0.1  # share by which limits that are no whole numbers are raised


@dataclass(frozen=True, slots=True)
class Worth:
    """One more of something that is limited. `dual_usd_per_day`: what the first bit of it saves in the relaxation."""

    what: str
    saves_usd_per_day: float
    dual_usd_per_day: float
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """Requests of a service and group over the horizon, and their part of the cost."""

    service: str
    group: str
    requests: float
    tokens: float
    usd: float

    @property
    def usd_per_mtok(self) -> float:
        return 1e6 * self.usd / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Values:
    """`usd`: of the relaxation, over the horizon. `worths`: owned machines, then the dearest first.
    `served`: parts of `usd`; they sum to it."""

    usd: float
    worths: tuple[Worth, ...]
    served: tuple[Served, ...]


def values(problem: Problem, *, whole: Plan | None = None) -> Values:
    """`whole`: reckon savings with whole machines, and compare with this plan. NoOptimum for a problem without a plan."""
    found = relaxation(problem)
    return Values(found.usd, _worths(problem, found, whole), _served(problem, found))


# -- what one more saves


@dataclass(frozen=True, slots=True)
class _More:
    """A problem with more of something, and by how much the dual says that the cost falls."""

    what: str
    problem: Problem
    dual_usd: float
    offer: Offer | None = None


def _worths(problem: Problem, found: Relaxation, whole: Plan | None) -> tuple[Worth, ...]:
    little = _LITTLE_USD * max(1.0, found.usd)
    scarce = sorted(_more(problem, found), key=lambda each: (not _is_owned(each.offer), -each.dual_usd))
    asked = [each for each in scarce if each.dual_usd > little][: _MOST if whole is None else _MOST_WHOLE]
    others = costs([free(each.problem) for each in asked], whole=whole is not None)
    base_usd = known_usd(problem, whole)
    a_day = 24 / problem.horizon_h
    worths = []
    for each, other in zip(asked, others, strict=True):
        saved_usd = 0.0 if other is None else max(0.0, base_usd - other.usd)
        if saved_usd > little or _is_owned(each.offer):
            worths.append(Worth(each.what, saved_usd * a_day, each.dual_usd * a_day, each.offer))
    worths += [
        Worth(each.what, 0.0, 0.0, each.offer)
        for each in scarce
        if _is_owned(each.offer) and each.dual_usd <= little
    ]
    return tuple(sorted(worths, key=lambda each: (not _is_owned(each.offer), -each.saves_usd_per_day)))


def _is_owned(offer: Offer | None) -> bool:
    return offer is not None and offer.purchase == "owned"


def _more(problem: Problem, found: Relaxation) -> Iterable[_More]:
    for number, offer in enumerate(problem.offers):
        if offer.limit:
            offers = _put(problem.offers, number, replace(offer, limit=offer.limit + 1))
            dual_usd = _limit_usd(found, number)
            yield _More(f"one more {offer.name}", replace(problem, offers=offers), dual_usd, offer)
    rules, joint, dual = problem.rules, found.found.joint, found.found.row_dual
    if rules.ramp is not None:
        more = replace(problem, rules=replace(rules, ramp=rules.ramp + 1))
        yield _More(f"a ramp of {rules.ramp + 1} machines", more, float(np.abs(dual[joint.ramp]).sum()))
    if rules.carbon_kg is not None:
        carbon_kg = rules.carbon_kg * (1 + _MORE)
        more = replace(problem, rules=replace(rules, carbon_kg=carbon_kg))
        usd = -float(dual[joint.carbon]) * rules.carbon_kg * _MORE
        yield _More(f"{carbon_kg:,.0f} kg of carbon instead of {rules.carbon_kg:,.0f}", more, usd)
    yield from _more_calls(problem, found)


def _more_calls(problem: Problem, found: Relaxation) -> Iterable[_More]:
    for number, api in enumerate(problem.apis):
        limits = {"requests": api.requests_per_s, "tokens": api.tokens_per_s}
        for what, limit in limits.items():
            rows = [r.calls[number, what] for r in found.found.joint.rows if (number, what) in r.calls]
            if not rows:
                continue
            raised = limit * (1 + _MORE)
            more = (
                replace(api, requests_per_s=raised)
                if what == "requests"
                else replace(api, tokens_per_s=raised)
            )
            usd = -float(found.found.row_dual[np.concatenate(rows)].sum()) * limit * _MORE
            text = f"{raised:.4g} {what} a second from {api.name} instead of {limit:.4g}"
            yield _More(text, replace(problem, apis=_put(problem.apis, number, more)), usd)


def _put(these: tuple[T, ...], number: int, one: T) -> tuple[T, ...]:
    return (*these[:number], one, *these[number + 1 :])


def _limit_usd(found: Relaxation, number: int) -> float:
    """What the first bit of a machine more saves over the horizon. A limit is in the rows of C3, and in bounds of the
    variables themselves."""
    v, joint = found.view, found.found.joint
    offer = v.problem.offers[number]
    mine = np.array([m for m, (o, _) in enumerate(v.options) if o is offer], np.int64)
    usd = 0.0
    for rows in joint.rows:
        usd -= _bound_usd(found, rows.n[mine])
        if number in rows.limit:
            usd -= float(found.found.row_dual[rows.limit[number]])
    if offer.purchase == "reserved":
        commits = [o for o in v.problem.offers if o.purchase == "reserved" and o.limit != 0]
        usd -= _bound_usd(found, joint.reserved[[c for c, o in enumerate(commits) if o is offer]])
    return max(0.0, usd)


def _bound_usd(found: Relaxation, variables: Places) -> float:
    """Negative: what more of these variables would save, beyond what rows know."""
    return float(np.minimum(0.0, found.found.reduced[variables]).sum())


# -- what serving costs


def _served(problem: Problem, found: Relaxation) -> tuple[Served, ...]:
    """By the price of serving, the dual of C1. Scarce cheap machines make the prices sum to more than the cost, so they
    only say in which proportions it is shared."""
    price = _prices(found)
    total = float(price.sum())
    scale = found.usd / total if total > 0 else 0.0
    paid = sum((w.paid for w in found.view.worlds), np.zeros((len(problem.buckets), len(problem.periods))))
    requests = (paid * found.view.hours).sum(axis=1) * HOUR_S
    kinds: dict[tuple[str, str], list[int]] = {}
    for k, bucket in enumerate(problem.buckets):
        kinds.setdefault((bucket.service, bucket.group), []).append(k)
    return tuple(
        Served(
            service,
            group,
            float(requests[ks].sum()),
            float(sum(requests[k] * _size(problem, k) for k in ks)),
            float(price[ks].sum()) * scale,
        )
        for (service, group), ks in kinds.items()
    )


def _size(problem: Problem, k: int) -> float:
    return problem.buckets[k].prompt_tokens + problem.buckets[k].output_tokens


def _prices(found: Relaxation) -> Floats:
    """[K] what serving a bucket adds, over all worlds and periods. A share's bound of 1 repeats C1, so part of the price
    may be in that."""
    r = found.found
    price = np.zeros(len(found.view.problem.buckets))
    for rows in r.joint.rows:
        price += r.row_dual[rows.serve].sum(axis=0)
        np.add.at(price, rows.routes.bucket, np.minimum(0.0, r.reduced[rows.x]) * r.x[rows.x])
    return np.maximum(0.0, price)
