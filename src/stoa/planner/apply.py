"""A plan as what a fleet follows: `stoa plan --apply`.

machine counts       ─▶ targets, for the kinds of machine that the plan uses; with room up to each offer's limit
routes as forecast   ─▶ weights by group and class: shares of requests, by place and remote (an API by its name)
routes of losses and
of other scenarios   ─▶ overflow: how much of the requests an API may get at most
groups and rules     ─▶ residency
what of the budget is
not spent            ─▶ the most that an API may cost in a day
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from stoa.fleet.policies.contract import (
    ANY,
    VERSION,
    FleetPlan,
    GroupPart,
    Overflow,
    PeriodPart,
    PlacePart,
    RulePart,
    Section,
    Served,
    Target,
    Weights,
    check_plan,
)
from stoa.planner.livefacts import CLASSES, HOURS_OF_A_DAY, LiveFacts, Site, spans
from stoa.planner.names import Names
from stoa.planner.plan import Costs, Plan, Pool, Route, cost_of
from stoa.planner.problem import Api, Bucket, Offer, Place, Problem, Service

OVERFLOW_SHARE = 0.1  # of the requests that an API may get though no world of the plan sends it any
OTHERS = "others"
_Lane = tuple[Served, str]  # class of requests, group


def fleet_plan(
    plan: Plan, problem: Problem, facts: LiveFacts = HOURS_OF_A_DAY, *, overflow_share: float = OVERFLOW_SHARE
) -> FleetPlan:
    """`facts`: by default a period is an hour of the day. Raises ConfigError."""
    names = Names.of(problem)
    models = [
        m
        for m in dict.fromkeys(f.model for f in problem.fits)
        if any(m in s.models for s in problem.services)
    ]
    found = FleetPlan(
        version=VERSION,
        made=f"{plan.costs.total:.2f} USD in {problem.horizon_h / 24:.4g} days, proved to within {plan.gap:.2%}",
        time_zone=facts.time_zone,
        periods=tuple(
            PeriodPart(name=p.name, hours=spans(facts.hours, i)) for i, p in enumerate(problem.periods)
        ),
        places=tuple(_place(p, names.place[p.name], facts) for p in problem.places),
        groups=_groups(problem),
        rules=tuple(
            RulePart(name=r.name, projects=r.projects, places=tuple(sorted(r.places))) for r in facts.rules
        ),
        models={model: _section(model, plan, problem, facts, overflow_share) for model in models},
    )
    check_plan(found)
    return found


def _place(place: Place, slug: str, facts: LiveFacts) -> PlacePart:
    """`slug`: what exported nodes call their zone. A region is a cloud's: its machines are none of an owned place's."""
    site = facts.sites.get(place.name, Site())
    zones = tuple(zone for zone in dict.fromkeys((slug, site.zone)) if zone and zone != place.name)
    regions = (site.region,) if site.region and not site.zone and "owned" not in place.labels else ()
    return PlacePart(name=place.name, zones=zones, regions=regions)


def check_sites(problem: Problem, facts: LiveFacts) -> None:
    """What would make a plan's file impossible, whatever the plan: ConfigError before it is searched for."""
    fleet_plan(Plan((), {}, (), Costs({}, 0.0, 0.0), 0.0), problem, facts)


# -- who may be served where


def _groups(problem: Problem) -> tuple[GroupPart, ...]:
    """One of them takes projects that nobody has named: the one without rules; where there is none, they may be served
    where all groups may."""
    free = next((g.name for g in problem.groups if not g.rules and _is_everywhere(g.places, problem)), None)
    found = [
        GroupPart(
            name=g.name,
            projects=(*g.projects, ANY) if g.name == free else g.projects,
            places=(ANY,) if g.name == free else tuple(sorted(g.places)),
        )
        for g in problem.groups
    ]
    if free is None:
        left = frozenset.intersection(*(g.places for g in problem.groups))
        found.append(GroupPart(name=_unused(OTHERS, problem), projects=(ANY,), places=tuple(sorted(left))))
    return tuple(found)


def _is_everywhere(places: frozenset[str], problem: Problem) -> bool:
    return places >= {p.name for p in problem.places}


def _unused(name: str, problem: Problem) -> str:
    taken = {g.name for g in problem.groups}
    while name in taken:
        name += "'"
    return name


# -- one model


def _section(model: str, plan: Plan, problem: Problem, facts: LiveFacts, overflow_share: float) -> Section:
    services = [s for s in problem.services if model in s.models]
    shares = _Shares(model, plan, problem, facts)
    return Section(
        targets=_targets(model, plan, problem),
        demand=_demand(services, problem),
        weights=tuple(w for lane in shares.lanes if (w := shares.weights(lane)) is not None),
        overflow=tuple(_overflow(services, problem, facts, shares, overflow_share)),
        daily_usd=_daily_usd(plan, problem),
        imbalance_s=min(0.5, min((s.ttft_s for s in services), default=2.0) / 4),
    )


def _targets(model: str, plan: Plan, problem: Problem) -> tuple[Target, ...]:
    """Of machine types that the plan uses for the model; what an offer has besides is room for more of it."""
    none = (0,) * len(problem.periods)
    counts = {(r.pool, r.purchase): r.counts for r in plan.rented}
    used = {pool.machine for (pool, _), n in counts.items() if pool.model == model and any(n)}
    found = []
    for offer in problem.offers:
        if offer.machine not in used:
            continue
        mine = counts.get((Pool(offer.place, offer.machine, model), offer.purchase), none)
        most = _most(offer, plan, max(_of_others(model, plan, offer), default=0))
        most = None if most is None else max(most, *mine)
        if most != 0:
            found.append(
                Target(
                    place=offer.place,
                    machine=offer.machine,
                    market=offer.purchase,
                    replicas=mine,
                    most=most,
                    availability=offer.availability,
                )
            )
    return tuple(found)


def _demand(services: Sequence[Service], problem: Problem) -> tuple[float, ...]:
    """Requests a second, as it is likely."""
    names = {s.name for s in services}
    mine = [b.rates for b in problem.buckets if b.service in names]
    factor = [sum(s.probability * s.factors[t] for s in problem.likely) for t in range(len(problem.periods))]
    return tuple(round(f * sum(rates[t] for rates in mine), 6) for t, f in enumerate(factor))


def _of_others(model: str, plan: Plan, offer: Offer) -> Iterable[int]:
    """What other models have of the offer, by period."""
    there = [
        r.counts
        for r in plan.rented
        if (r.pool.place, r.pool.machine, r.purchase) == (offer.place, offer.machine, offer.purchase)
        and r.pool.model != model
    ]
    return (sum(column) for column in zip(*there, strict=True))


def _most(offer: Offer, plan: Plan, others: int) -> int | None:
    """What is left of an offer. Of reserved machines there are those that were committed to."""
    reserved = offer.purchase == "reserved"
    limit = plan.reserved.get((offer.place, offer.machine), 0) if reserved else offer.limit
    return None if limit is None else max(0, limit - others)


# -- where requests go


class _Shares:
    """Shares of requests by class and group, of those that the model or an API may answer."""

    def __init__(self, model: str, plan: Plan, problem: Problem, facts: LiveFacts) -> None:
        self._problem = problem
        self._usual = {s.name: s for s in problem.likely}
        self._sent: dict[tuple[str, _Lane, Pool | str], list[float]] = defaultdict(self._none)
        asked = {s.name for s in problem.services if model in s.models}
        told = any(name in facts.classes for name in asked)
        for route in plan.routes:
            bucket = problem.buckets[route.bucket]
            if bucket.service not in asked or (
                isinstance(route.target, Pool) and route.target.model != model
            ):
                continue
            for served in facts.classes.get(bucket.service, CLASSES) if told else ("",):
                self._add(route, (_served(served), bucket.group), bucket)
        self.lanes: list[_Lane] = list(dict.fromkeys(lane for _, lane, _ in self._sent))
        self.classes: list[Served] = list(dict.fromkeys(served for served, _ in self.lanes))

    def _none(self) -> list[float]:
        return [0.0] * len(self._problem.periods)

    def _add(self, route: Route, lane: _Lane, bucket: Bucket) -> None:
        sent = self._sent[route.world, lane, route.target]
        for t, (share, rate) in enumerate(zip(route.shares, bucket.rates, strict=True)):
            sent[t] += share * rate

    def weights(self, lane: _Lane) -> Weights | None:
        """As forecast: the mean over scenarios. None: nothing is asked for."""
        places: dict[str, list[float]] = defaultdict(self._none)
        remotes: dict[str, list[float]] = defaultdict(self._none)
        for (world, mine, target), sent in self._sent.items():
            if mine != lane or world not in self._usual:
                continue
            into = remotes[target] if isinstance(target, str) else places[target.place]
            for t, n in enumerate(sent):
                into[t] += self._usual[world].probability * self._usual[world].factors[t] * n
        if not any(map(any, (*places.values(), *remotes.values()))):
            return None
        total = [sum(column) for column in zip(*places.values(), *remotes.values(), strict=True)]
        return Weights(
            groups=(lane[1],),
            service=lane[0],
            places={name: _parts(sent, total) for name, sent in places.items() if any(sent)},
            remotes={name: _parts(sent, total) for name, sent in remotes.items() if any(sent)},
        )

    def most(self, lane: _Lane, api: str) -> float:
        """The largest share that any world sends there, in any period."""
        shares = [0.0]
        for world in {world for world, mine, _ in self._sent if mine == lane}:
            sent = {target: n for (w, mine, target), n in self._sent.items() if (w, mine) == (world, lane)}
            for t, n in enumerate(sent.get(api, ())):
                total = sum(column[t] for column in sent.values())
                shares.append(n / total if total > 0 else 0.0)
        return max(shares)


def _parts(sent: Sequence[float], total: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(n / t, 6) if t > 0 else 0.0 for n, t in zip(sent, total, strict=True))


def _served(name: str) -> Served:
    return "interactive" if name == "interactive" else "batch" if name == "batch" else ""


# -- overflow


def _overflow(
    services: Sequence[Service], problem: Problem, facts: LiveFacts, shares: _Shares, overflow_share: float
) -> Iterable[Overflow]:
    """A rule for each API that may answer, by class and by groups of the same share."""
    for api in problem.apis:
        for served in shares.classes:
            mine = [s for s in services if api.model in s.models and _has_class(s, served, facts)]
            by_share: dict[float, list[str]] = {}
            for group in problem.groups:
                if mine and api.place in group.places:
                    most = shares.most((served, group.name), api.name) or overflow_share
                    by_share.setdefault(round(min(1.0, most), 4), []).append(group.name)
            for most, groups in by_share.items():
                yield Overflow(
                    remote=api.name,
                    groups=tuple(groups),
                    service=served,
                    wait_s=min(s.ttft_s for s in mine),
                    most_share=most,
                )


def _has_class(service: Service, served: Served, facts: LiveFacts) -> bool:
    return not served or served in facts.classes.get(service.name, CLASSES)


def _daily_usd(plan: Plan, problem: Problem) -> dict[str, float]:
    """What the plan spends at each API, and what it leaves of the budget. Without a budget nothing is said."""
    budget = problem.rules.budget_usd
    if budget is None:
        return {}
    days = problem.horizon_h / 24
    spare = max(0.0, budget - plan.costs.total) / days
    return {api.name: round(spare + _spent(plan, problem, api) / days, 2) for api in problem.apis}


def _spent(plan: Plan, problem: Problem, api: Api) -> float:
    """USD over the horizon, as forecast."""
    return cost_of(problem, (), {}, [r for r in plan.routes if r.target == api.name]).api
