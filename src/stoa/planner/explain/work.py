"""How much work a plan's requests are for its machines, and how many of those there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stoa.planner.plan import USUAL, Plan, Pool, Route
from stoa.planner.problem import PURCHASES, Fit, Offer, Problem, Purchase


def hours(problem: Problem) -> list[float]:
    """By period."""
    return [p.hours * p.times for p in problem.periods]


def offer_of(problem: Problem, place: str, machine: str, purchase: Purchase) -> Offer | None:
    same = (o for o in problem.offers if (o.place, o.machine, o.purchase) == (place, machine, purchase))
    return next(same, None)


def fit_of(problem: Problem, pool: Pool) -> Fit:
    key = (pool.machine, pool.model, pool.pace)
    return next(f for f in problem.fits if (f.machine, f.model, f.pace) == key)


def likely_routes(plan: Plan, problem: Problem) -> Iterator[tuple[Route, tuple[float, ...]]]:
    """Routes of the worlds that are reckoned with, and the requests a second of each, by period, times its probability."""
    probability = likely(problem)
    factors = {s.name: s.factors for s in problem.scenarios}
    flat = (1.0,) * len(problem.periods)
    for route in plan.routes:
        if route.world in probability:
            rates = problem.buckets[route.bucket].rates
            times = zip(route.shares, rates, factors.get(route.world, flat), strict=True)
            yield (
                route,
                tuple(probability[route.world] * share * rate * factor for share, rate, factor in times),
            )


def there(plan: Plan, problem: Problem) -> dict[Purchase, list[float]]:
    """By way of paying and period: replicas that are there on average."""
    found: dict[Purchase, list[float]] = {purchase: [0.0] * len(problem.periods) for purchase in PURCHASES}
    for each in plan.rented:
        offer = offer_of(problem, each.pool.place, each.pool.machine, each.purchase)
        for t, count in enumerate(each.counts):
            found[each.purchase][t] += count * (offer.availability if offer is not None else 1.0)
    return found


def work(plan: Plan, problem: Problem) -> tuple[list[float], list[float]]:
    """By period, seconds of replicas that the requests for them take each second: in the dearest scenario and with margins,
    and as it is expected."""
    probability = likely(problem)
    total = {world: [0.0] * len(problem.periods) for world in probability}
    for by_world in work_by_pool(plan, problem).values():
        for world, series in by_world.items():
            total[world] = [a + b for a, b in zip(total[world], series, strict=True)]
    mean = [sum(p * total[world][t] for world, p in probability.items()) for t in range(len(problem.periods))]
    return needed(problem, total), mean


def likely(problem: Problem) -> dict[str, float]:
    return {s.name: s.probability for s in problem.scenarios} or {USUAL: 1.0}


def needed(problem: Problem, by_world: Mapping[str, Sequence[float]]) -> list[float]:
    periods = range(len(problem.periods))
    return [max(series[t] for series in by_world.values()) * problem.margin(t) for t in periods]


def work_by_pool(plan: Plan, problem: Problem) -> dict[Pool, dict[str, list[float]]]:
    """By pool, world and period, without margins."""
    probability = likely(problem)
    factors = {s.name: s.factors for s in problem.scenarios}
    flat = (1.0,) * len(problem.periods)
    found: dict[Pool, dict[str, list[float]]] = {}
    for route in plan.routes:
        if route.world not in probability or not isinstance(route.target, Pool):
            continue
        each_s = fit_of(problem, route.target).load_s[route.bucket]
        by_world = found.setdefault(
            route.target, {world: [0.0] * len(problem.periods) for world in probability}
        )
        rates = problem.buckets[route.bucket].rates
        times = zip(route.shares, rates, factors.get(route.world, flat), strict=True)
        for t, (share, rate, factor) in enumerate(times):
            by_world[route.world][t] += share * rate * factor * each_s if share else 0.0
    return found
