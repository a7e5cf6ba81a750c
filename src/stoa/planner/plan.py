"""A plan: which machines in which period, who is served where, and what that costs. Plain facts; `verify` checks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stoa.planner.problem import Problem, Purchase


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one model on one type of machine at one place, run at one pace, however they are paid for."""

    place: str
    machine: str
    model: str
    pace: str = ""

    @property
    def name(self) -> str:
        return f"{self.model} on {self.machine} at {self.place}" + (
            f", as {self.pace} needs it" if self.pace else ""
        )


@dataclass(frozen=True, slots=True)
class Rented:
    """`counts` by period: machines, one replica each."""

    pool: Pool
    purchase: Purchase
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of a bucket go: `shares` by period, of all of that bucket's requests. `target` is a pool, or the name
    of an API."""

    world: str
    bucket: int
    target: Pool | str
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """USD over the horizon."""

    machines: Mapping[Purchase, float]
    api: float
    network: float

    @property
    def total(self) -> float:
        return sum(self.machines.values()) + self.api + self.network


@dataclass(frozen=True, slots=True)
class Plan:
    """`bound_usd`: no plan costs less, as the solver proved. `reserved`: machines committed to for the whole horizon, by
    place and type. `routes` of each world: `Problem.likely`, and each loss that is survived."""

    rented: tuple[Rented, ...]
    reserved: Mapping[tuple[str, str], int]
    routes: tuple[Route, ...]
    costs: Costs
    bound_usd: float
    solve_s: float = 0.0
    method: str = "milp"

    @property
    def gap(self) -> float:
        """Share of the cost by which it may be too high."""
        return max(0.0, 1 - self.bound_usd / self.costs.total) if self.costs.total > 0 else 0.0

    def machines(self, period: int) -> Iterator[tuple[Pool, Purchase, int]]:
        """What runs in a period."""
        for each in self.rented:
            if each.counts[period]:
                yield each.pool, each.purchase, each.counts[period]

    def replicas(self, pool: Pool, period: int) -> int:
        return sum(each.counts[period] for each in self.rented if each.pool == pool)


def cost_of(
    problem: Problem,
    rented: Sequence[Rented],
    reserved: Mapping[tuple[str, str], int],
    routes: Sequence[Route],
) -> Costs:
    """What these cost over the problem's horizon, from its prices alone. Routes of losses cost nothing: they do not happen
    in a plan's own reckoning."""
    machines: dict[Purchase, float] = {}
    for each in rented:
        if each.purchase != "reserved":
            offer = problem.offer(each.pool.place, each.pool.machine, each.purchase)
            run_h = sum(n * h for n, h in zip(each.counts, problem.hours, strict=True))
            spent = run_h * offer.hourly_usd * offer.availability
            machines[each.purchase] = machines.get(each.purchase, 0.0) + spent
    for (place, machine), count in reserved.items():
        spent = count * problem.offer(place, machine, "reserved").hourly_usd * problem.horizon_h
        machines["reserved"] = machines.get("reserved", 0.0) + spent
    api_cost = network = 0.0
    for route, rates in likely_routes(problem, routes):
        requests = 3600 * sum(rate * h for rate, h in zip(rates, problem.hours, strict=True))
        api_cost += requests * api_usd(problem, route)
        network += requests * traffic_usd(problem, route.bucket, place_of(problem, route.target))
    return Costs(machines, api_cost, network)


def likely_routes(problem: Problem, routes: Sequence[Route]) -> Iterator[tuple[Route, tuple[float, ...]]]:
    """Those of worlds that are reckoned with, and the requests a second of each, by period, times its probability."""
    likely = {s.name: s for s in problem.likely}
    for route in routes:
        world = likely.get(route.world)
        if world is not None:
            times = zip(route.shares, problem.buckets[route.bucket].rates, world.factors, strict=True)
            yield route, tuple(world.probability * share * rate * factor for share, rate, factor in times)


def api_usd(problem: Problem, route: Route) -> float:
    """USD of one request of the route's bucket for an API's tokens; 0 for a pool."""
    if isinstance(route.target, Pool):
        return 0.0
    api, bucket = problem.api(route.target), problem.buckets[route.bucket]
    return api.request_usd(bucket.prompt_tokens, bucket.output_tokens)


def place_of(problem: Problem, target: Pool | str) -> str:
    """Where a pool or an API is."""
    return target.place if isinstance(target, Pool) else problem.api(target).place


def traffic_usd(problem: Problem, bucket: int, place: str) -> float:
    """USD of one request's traffic between a bucket's origin and a place."""
    b, net = problem.buckets[bucket], problem.network
    gib = (b.output_tokens * net.bytes_per_token + 4 * b.prompt_tokens) / 2**30
    return gib * net.usd_per_gib.get((b.origin, place), 0.0)
