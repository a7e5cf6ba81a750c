"""The fleets that `robust.py` compares: a plan followed, its rivals, and a schedule made in hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from benchmarks.planner.forecast import (
    CONTRACT,
    HOUR_S,
    MODEL,
    RESERVED,
    Counts,
    Hindsight,
    Making,
    problem_of,
    sharpened,
)
from candidates import candidates
from elasticity import DAY_S, HOURLY, PROFILE, SLO, World, facts
from msgspec import structs

from stoa.fleet.policies.consolidation import first_to_go
from stoa.fleet.policies.contract import FleetPlan
from stoa.fleet.policies.facts import Bounds, Decision, Launch, Snapshot
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.planned import Planned
from stoa.planner.apply import fleet_plan
from stoa.planner.program import solve
from stoa.programs import Floats
from stoa.simulator import Options, Requests, Result, Zone, simulate
from stoa.simulator.baselines import Both, Hpa, OnDemand
from stoa.simulator.baselines.hpa import HpaMemory

Order = Literal["deadline", "arrival"]


@dataclass(frozen=True)
class Policy:
    """`fixed_usd` an hour is paid beside what the simulator counts."""

    scaler: Any
    zones: Sequence[Zone]
    order: Order = "deadline"
    fixed_usd: float = 0.0


def run(policy: Policy, requests: Requests, *, seed: int, day: int) -> dict[str, Any]:
    """Day 0 is measured from its second hour, day 1 after the whole of day 0."""
    from_s = DAY_S if day else HOUR_S
    result = simulate(
        [requests], policy.zones, PROFILE, policy.scaler, slo=SLO, bounds=Bounds(min_replicas=1), seed=seed,
        until_s=(day + 1) * DAY_S, options=Options(measure_from_s=from_s, order=policy.order),
    )  # fmt: skip
    return told(result, policy.fixed_usd)


def told(result: Result, fixed_usd: float = 0.0) -> dict[str, Any]:
    fixed = fixed_usd * result.measured_s / HOUR_S
    found = facts(result) | {"cost_usd": round(result.cost_usd + fixed, 2)}
    return found | {"usd": {m: round(usd, 2) for m, usd in result.cost.items()} | {"fixed": round(fixed, 2)}}


# -- ours


def ours(
    day: Requests, zones: Sequence[Zone], making: Making, *, at_s: float, reserved: bool, spot: bool
) -> Policy:
    there = [*zones] if spot else [Zone("on-demand", HOURLY, startup_s=zones[0].startup_s)]
    problem = problem_of(day, there, making, at_s=at_s, reserved=reserved, spot=spot)
    plan = solve(problem, gap=0.002, time_limit_s=10.0)
    committed = sum(plan.reserved.values())
    if committed:
        there.append(Zone(CONTRACT, 0.0, startup_s=zones[0].startup_s, on_demand_capacity=committed))
    model = ModelPlan.of(_followed(fleet_plan(plan, problem), committed), MODEL)
    return Policy(Planned(model), there, fixed_usd=committed * RESERVED * HOURLY)


def _followed(file: FleetPlan, committed: int) -> FleetPlan:
    """As applied, but that all machines that are committed to run: they are paid."""
    section, targets = file.models[MODEL], []
    for t in section.targets:
        counts = t.replicas
        if t.market == "reserved":
            counts = (committed,) * len(counts)
        targets.append(structs.replace(t, replicas=counts))
    return structs.replace(file, models={MODEL: structs.replace(section, targets=tuple(targets))})


# -- the others


def hedge(name: str, params: dict[str, Any], zones: Sequence[Zone], factor: float) -> Policy:
    c = candidates(factor)[name]
    return Policy(c.make(**params), zones, c.order)


@dataclass(frozen=True)
class Floored:
    """A horizontal autoscaler whose least number of replicas is another in each hour of the day."""

    hpa: Hpa
    least: Sequence[int]

    def initial(self) -> HpaMemory:
        return self.hpa.initial()

    def target(self, seen: Snapshot, memory: HpaMemory) -> tuple[int, HpaMemory]:
        least = self.least[int(seen.now_s / HOUR_S) % 24]
        most = max(least, self.hpa.max_replicas)
        target, memory = replace(self.hpa, min_replicas=least, max_replicas=most).target(seen, memory)
        return max(least, target), memory


def burst(name: str, params: dict[str, Any], world: World, least: Sequence[int]) -> Policy:
    zones = world.zones(0, False)
    order: Order = "deadline" if name.endswith("deadline") else "arrival"
    return Policy(Both(Floored(Hpa(**params), least), OnDemand()), zones, order)


# -- in hindsight


@dataclass(frozen=True)
class Schedule:
    """`counts` of equal periods from `begins_s` on, and those of the first before. Machines are launched so that they are
    ready in time, and drained when their period has ended."""

    counts: Counts
    length_s: float
    begins_s: float

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        launch, drain = [], []
        for known in seen.offers:
            offer = known.offer
            n = self.counts[offer.zone, offer.market]
            ahead_s = seen.now_s + offer.startup_s + seen.demand.bin_s
            wanted = max(int(n[self._at(t, len(n))]) for t in (seen.now_s, ahead_s))
            mine = [r for r in seen.replicas if r.state != "draining" and r.offer == offer]
            if wanted > len(mine):
                launch.append(Launch(offer, wanted - len(mine)))
            drain += [r.id for r in first_to_go(mine)[: max(0, len(mine) - wanted)]]
        return Decision(tuple(launch), tuple(drain)), None

    def _at(self, at_s: float, periods: int) -> int:
        return min(periods - 1, max(0, int((at_s - self.begins_s) // self.length_s)))


def in_hindsight(
    requests: Requests, zones: Sequence[Zone], periods: int, *, seed: int, tries: int
) -> dict[str, dict[str, Any]]:
    """Of the second day, run with the hour before it; by what is added to its name: with reserved machines, and without."""
    warm_s = HOUR_S
    whole = requests.part(requests.arrival_s >= DAY_S - warm_s)
    part = replace(whole, arrival_s=whole.arrival_s - (DAY_S - warm_s))
    day = requests.part(requests.arrival_s >= DAY_S)
    day = replace(day, arrival_s=day.arrival_s - DAY_S)
    later = [
        replace(z, spot=replace(z.spot, offset_s=z.spot.offset_s + DAY_S - warm_s)) for z in zones if z.spot
    ]
    lead_s = zones[0].startup_s + 20.0
    known = Hindsight(day, later, periods, begins_s=warm_s, lead_s=lead_s)
    last: list[dict[str, Any]] = []

    def tried(margin: Floats, committed: int = 0) -> tuple[float, Floats, float]:
        counts = known.counts(margin, committed)
        contract = Zone(CONTRACT, 0.0, startup_s=zones[0].startup_s, on_demand_capacity=committed)
        result = simulate(
            [part], [*later, contract], PROFILE, Schedule(counts, known.length_s, warm_s), slo=SLO, seed=seed,
            until_s=warm_s + DAY_S, options=Options(measure_from_s=warm_s, record=len(part)),
        )  # fmt: skip
        last.append(told(result, committed * RESERVED * HOURLY))
        assert result.first_s is not None
        first_s = np.where(np.isnan(result.first_s), np.inf, result.first_s)
        late = (first_s - part.arrival_s > SLO.ttft_s) & (part.arrival_s >= warm_s)
        period = ((part.arrival_s[late] - warm_s) // known.length_s).astype(np.int64)
        by = np.bincount(np.minimum(period, periods - 1), minlength=periods).astype(np.float64)
        return result.attainment, by, last[-1]["cost_usd"]

    margin, _ = sharpened(tried, known.work, tries)
    usd = [known.usd(known.counts(margin, r)) + 24 * r * RESERVED * HOURLY for r in range(16)]
    found = {}
    for name, committed in (("", 0), ("-reserved", int(np.argmin(usd)))):
        tried(margin, committed)
        found[name] = last[-1] | {"committed": committed, "margin": [round(float(m), 3) for m in margin]}
    return found
