"""A plan in figures: what runs, who goes where, what each part costs. USD, requests and tokens are over the horizon, and
with scenarios by how likely each is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stoa.planner.explain.work import needed, work_by_pool
from stoa.planner.losses import losses
from stoa.planner.plan import Plan, Pool, Rented, api_usd, likely_routes, place_of, traffic_usd
from stoa.planner.problem import Api, Offer, Problem
from stoa.planner.program.view import HOUR_S

Target = Pool | str


@dataclass(frozen=True, slots=True)
class Row:
    """Machines of one pool, paid for in one way. `tokens`: those of the pool, shared by hours. Reserved machines that no
    pool uses have no counts."""

    place: str
    machine: str
    model: str
    pace: str
    offer: Offer
    counts: tuple[int, ...]
    usd: float
    tokens: float

    @property
    def pool(self) -> Pool:
        return Pool(self.place, self.machine, self.model, self.pace)


@dataclass(frozen=True, slots=True)
class Reserved:
    """`used`: share of the time for which there is work for them, with margins, if they are the first to get it. They may
    run on without: it costs nothing more."""

    place: str
    machine: str
    count: int
    used: float
    hourly_usd: float
    usd: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Requests of a service and group, and where they go: shares of the requests, the greatest first."""

    service: str
    group: str
    requests: float
    tokens: float
    shares: tuple[tuple[Target, float], ...]


@dataclass(frozen=True, slots=True)
class Called:
    """An API in the plan. `rates` by period: requests a second, the mean."""

    api: Api
    requests: float
    tokens: float
    usd: float
    rates: tuple[float, ...]


# -- machines


def rows(plan: Plan, problem: Problem) -> tuple[Row, ...]:
    """By place, as the problem has them, then the dearest first. A commitment's price is shared by hours of use."""
    order = {p.name: i for i, p in enumerate(problem.places)}
    tokens = tokens_by_target(plan, problem)
    found = [_row(plan, problem, each, tokens.get(each.pool, 0.0)) for each in plan.rented]
    used = {(row.place, row.machine) for row in found if row.offer.purchase == "reserved"}
    none = (0,) * len(problem.periods)
    for each in reserved(plan, problem):
        if (each.place, each.machine) not in used:
            offer = problem.offer(each.place, each.machine, "reserved")
            found.append(Row(each.place, each.machine, "", "", offer, none, each.usd, 0.0))
    return tuple(sorted(found, key=lambda row: (order[row.place], -row.usd, row.machine, row.model)))


def _row(plan: Plan, problem: Problem, each: Rented, tokens: float) -> Row:
    """`tokens`: of the whole pool."""
    pool = each.pool
    offer = problem.offer(pool.place, pool.machine, each.purchase)
    run_h = _run_h(problem, each)
    usd = run_h * offer.hourly_usd * offer.availability
    if each.purchase == "reserved":
        alike = [
            r
            for r in plan.rented
            if (r.pool.place, r.pool.machine, r.purchase) == (pool.place, pool.machine, "reserved")
        ]
        committed = plan.reserved[pool.place, pool.machine] * offer.hourly_usd * problem.horizon_h
        usd = committed * run_h / sum(_run_h(problem, r) for r in alike)
    pool_h = sum(_there_h(problem, r) for r in plan.rented if r.pool == pool)
    part = _there_h(problem, each) / pool_h if pool_h else 0.0
    return Row(pool.place, pool.machine, pool.model, pool.pace, offer, each.counts, usd, part * tokens)


def _there_h(problem: Problem, each: Rented) -> float:
    return (
        _run_h(problem, each) * problem.offer(each.pool.place, each.pool.machine, each.purchase).availability
    )


def _run_h(problem: Problem, each: Rented) -> float:
    return sum(n * h for n, h in zip(each.counts, problem.hours, strict=True))


def reserved(plan: Plan, problem: Problem) -> tuple[Reserved, ...]:
    found = []
    work = {pool: needed(problem, series) for pool, series in work_by_pool(plan, problem).items()}
    for (place, machine), count in plan.reserved.items():
        if not count:
            continue
        offer = problem.offer(place, machine, "reserved")
        busy_h = sum(
            h * min(n, asked)
            for r in plan.rented
            if (r.pool.place, r.pool.machine, r.purchase) == (place, machine, "reserved") and r.pool in work
            for h, n, asked in zip(problem.hours, r.counts, work[r.pool], strict=True)
        )
        paid_h = count * problem.horizon_h
        found.append(
            Reserved(place, machine, count, busy_h / paid_h, offer.hourly_usd, paid_h * offer.hourly_usd)
        )
    return tuple(found)


# -- requests


def flows(plan: Plan, problem: Problem) -> tuple[Flow, ...]:
    parts: dict[tuple[str, str], dict[Target, float]] = {}
    tokens: dict[tuple[str, str], float] = defaultdict(float)
    for route, rates in likely_routes(problem, plan.routes):
        bucket = problem.buckets[route.bucket]
        kind = (bucket.service, bucket.group)
        requests = _sum(problem, rates)
        to = parts.setdefault(kind, defaultdict(float))
        to[route.target] += requests
        tokens[kind] += requests * (bucket.prompt_tokens + bucket.output_tokens)
    found = []
    for (service, group), to in parts.items():
        total = sum(to.values())
        shares = sorted(to.items(), key=lambda each: -each[1])
        found.append(
            Flow(
                service,
                group,
                total,
                tokens[service, group],
                tuple((t, n / total) for t, n in shares if total),
            )
        )
    order = {s.name: i for i, s in enumerate(problem.services)}
    return tuple(sorted(found, key=lambda f: (order[f.service], f.group)))


def _sum(problem: Problem, rates: tuple[float, ...]) -> float:
    return sum(r * h * HOUR_S for r, h in zip(rates, problem.hours, strict=True))


def tokens_by_target(plan: Plan, problem: Problem) -> dict[Target, float]:
    found: dict[Target, float] = defaultdict(float)
    for route, rates in likely_routes(problem, plan.routes):
        bucket = problem.buckets[route.bucket]
        found[route.target] += _sum(problem, rates) * (bucket.prompt_tokens + bucket.output_tokens)
    return dict(found)


def called(plan: Plan, problem: Problem) -> tuple[Called, ...]:
    """APIs that get requests."""
    found = []
    tokens = tokens_by_target(plan, problem)
    for api in problem.apis:
        mine = [
            (route, rates) for route, rates in likely_routes(problem, plan.routes) if route.target == api.name
        ]
        if mine:
            rates = tuple(sum(each) for each in zip(*(rates for _, rates in mine), strict=True))
            usd = sum(_sum(problem, r) * api_usd(problem, route) for route, r in mine)
            found.append(Called(api, _sum(problem, rates), tokens[api.name], usd, rates))
    return tuple(found)


def survived(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Losses of something that the plan uses, as its worlds are called. Which routes it has for them is left to chance where
    several would do, since they cost nothing in the reckoning; that there are some is what counts."""
    offers = [problem.offer(r.pool.place, r.pool.machine, r.purchase) for r in plan.rented if any(r.counts)]
    hosted = {api.place for api in problem.apis if any(r.target == api.name for r in plan.routes)}
    return tuple(
        loss.name
        for loss in losses(problem)
        if any(map(loss.takes, offers)) or (loss.place in hosted and not loss.spot)
    )


def name_of(problem: Problem, target: Target) -> str:
    if isinstance(target, Pool):
        return target.name
    return f"{target} (API)"


# -- cost by place


def usd_by_place(plan: Plan, problem: Problem) -> dict[str, list[float]]:
    """By place and period: USD of an hour, for machines, tokens and traffic. Sums, times hours, to the plan's cost."""
    found: dict[str, list[float]] = {p.name: [0.0] * len(problem.periods) for p in problem.places}
    for each in plan.rented:
        offer = problem.offer(each.pool.place, each.pool.machine, each.purchase)
        if each.purchase != "reserved":
            for t, count in enumerate(each.counts):
                found[each.pool.place][t] += count * offer.hourly_usd * offer.availability
    for one in reserved(plan, problem):
        for t in range(len(problem.periods)):
            found[one.place][t] += one.count * one.hourly_usd
    for route, rates in likely_routes(problem, plan.routes):
        each_usd = api_usd(problem, route)
        each_usd += traffic_usd(problem, route.bucket, place_of(problem, route.target))
        for t, rate in enumerate(rates):
            found[place_of(problem, route.target)][t] += rate * HOUR_S * each_usd
    return found
