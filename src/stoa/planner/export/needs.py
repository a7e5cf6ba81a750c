"""What a plan wants of each place, in the shape that all exports share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoa.fleet.policies.contract import FleetPlan
from stoa.planner import accelerators
from stoa.planner.livefacts import LiveFacts, Site
from stoa.planner.plan import Plan, Pool, likely_routes
from stoa.planner.problem import MachineType, Problem, Purchase

PORT = 8000
MARKETS: Mapping[Purchase, str] = {
    "owned": "on-demand",  # nobody takes it back
    "reserved": "on-demand",
    "on_demand": "on-demand",
    "spot": "spot",
}


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas of a model on one kind of machine, bought in one way: at least, at most."""

    pool: Pool
    purchase: Purchase
    machine: MachineType
    site: Site
    least: int
    most: int

    @property
    def market(self) -> str:
        return MARKETS[self.purchase]

    @property
    def fleet(self) -> tuple[str, str]:
        """Replicas of one fleet are all alike."""
        return self.pool.model, self.pool.machine


def needs(plan: Plan, problem: Problem, facts: LiveFacts) -> list[Need]:
    """By model, machine, place and way of buying: least and most of all periods; nothing of what the plan does not want."""
    machines = {m.name: m for m in problem.machines}
    found = [
        Need(
            r.pool, r.purchase, machines[r.pool.machine], facts.sites.get(r.pool.place, Site()), min(r.counts), max(r.counts)
        )
        for r in plan.rented
        if any(r.counts)
    ]  # fmt: skip
    return sorted(found, key=lambda n: (*n.fleet, n.pool.place, n.purchase))


def with_room(some: Sequence[Need], plan: FleetPlan, problem: Problem) -> list[Need]:
    """What a fleet that follows the plan may want at these places: every offer there of the same machines, as many as it
    leaves room for; where it sets no limit, twice what is planned there."""
    machines = {m.name: m for m in problem.machines}
    peak: dict[Pool, int] = {}
    for n in some:
        peak[n.pool] = peak.get(n.pool, 0) + n.most
    found = []
    for pool, planned in peak.items():
        site = next(n.site for n in some if n.pool == pool)
        for t in plan.models[pool.model].targets:
            if (t.place, t.machine) == (pool.place, pool.machine):
                most = 2 * planned if t.most is None else t.most
                found.append(Need(pool, t.market, machines[pool.machine], site, min(t.replicas), most))
    return found


def total(some: Iterable[Need], plan: Plan) -> tuple[int, int]:
    """Least and most of these together, over the periods."""
    keys = {(n.pool, n.purchase) for n in some}
    counts = [r.counts for r in plan.rented if (r.pool, r.purchase) in keys]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    return min(sums), max(sums)


def rate_per_replica(some: Sequence[Need], plan: Plan, problem: Problem) -> float:
    """Requests a second that a replica of these is planned to serve, in its busiest period."""
    pools = {n.pool for n in some}
    sent = [rates for route, rates in likely_routes(problem, plan.routes) if route.target in pools]
    busiest = 0.0
    for t in range(len(problem.periods)):
        replicas = sum(plan.replicas(pool, t) for pool in pools)
        if replicas:
            busiest = max(busiest, sum(rates[t] for rates in sent) / replicas)
    return busiest


def gpu_resource(machine: MachineType) -> str:
    """As Kubernetes' device plugins call it."""
    return "amd.com/gpu" if re.match(r"(?i)mi\d", _maker_free(machine)) else "nvidia.com/gpu"


def _maker_free(machine: MachineType) -> str:
    known = accelerators.by_name(machine.accelerator)
    return known.name if known is not None else machine.accelerator


def as_yaml(comment: str, *documents: Any) -> str:
    import yaml  # slow to import, and of use to exports alone

    head = "".join(f"# {''.join(filter(str.isprintable, line))}\n" for line in comment.split("\n"))
    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=120)
    return head + text
