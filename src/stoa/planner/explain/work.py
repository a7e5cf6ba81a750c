"""How much work a plan's requests are for its machines, and how many of those there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stoa.planner.plan import Plan, Pool
from stoa.planner.problem import PURCHASES, Fit, Problem, Purchase


def fit_of(problem: Problem, pool: Pool) -> Fit:
    return problem.fit(pool.machine, pool.model, pool.pace)


def there(plan: Plan, problem: Problem) -> dict[Purchase, list[float]]:
    """By way of paying and period: replicas that are there on average."""
    found: dict[Purchase, list[float]] = {purchase: [0.0] * len(problem.periods) for purchase in PURCHASES}
    for each in plan.rented:
        offer = problem.offer(each.pool.place, each.pool.machine, each.purchase)
        for t, count in enumerate(each.counts):
            found[each.purchase][t] += count * offer.availability
    return found


def work(plan: Plan, problem: Problem) -> tuple[list[float], list[float]]:
    """By period, seconds of replicas that the requests for them take each second: in the dearest scenario and with margins,
    and as it is expected."""
    total = {s.name: [0.0] * len(problem.periods) for s in problem.likely}
    for by_world in work_by_pool(plan, problem).values():
        for world, series in by_world.items():
            total[world] = [a + b for a, b in zip(total[world], series, strict=True)]
    mean = [
        sum(s.probability * total[s.name][t] for s in problem.likely) for t in range(len(problem.periods))
    ]
    return needed(problem, total), mean


def needed(problem: Problem, by_world: Mapping[str, Sequence[float]]) -> list[float]:
    periods = range(len(problem.periods))
    return [max(series[t] for series in by_world.values()) * problem.margin(t) for t in periods]


def work_by_pool(plan: Plan, problem: Problem) -> dict[Pool, dict[str, list[float]]]:
    """By pool, world and period, without margins."""
    factors = {s.name: s.factors for s in problem.likely}
    found: dict[Pool, dict[str, list[float]]] = {}
    for route in plan.routes:
        if route.world not in factors or not isinstance(route.target, Pool):
            continue
        each_s = fit_of(problem, route.target).load_s[route.bucket]
        by_world = found.setdefault(route.target, {world: [0.0] * len(problem.periods) for world in factors})
        rates = problem.buckets[route.bucket].rates
        times = zip(route.shares, rates, factors[route.world], strict=True)
        for t, (share, rate, factor) in enumerate(times):
            by_world[route.world][t] += share * rate * factor * each_s if share else 0.0
    return found
