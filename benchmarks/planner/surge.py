"""The fleets that `robust.py` compares: a plan followed, its rivals, and a schedule made in hindsight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from benchmarks.planner.forecast import MODEL, Making, problem_of, sizes, work_by
from candidates import Candidate, candidates
from elasticity import DAY_S, PROFILE, SLO, World, cut, facts, later

from stoa.fleet.policies.facts import Snapshot
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.policies.planned import Planned
from stoa.planner.apply import fleet_plan
from stoa.planner.program import solve
from stoa.planner.prove.scheduled import Scheduled
from stoa.programs import Floats, Places
from stoa.simulator import Options, Requests, SpotTrace, simulate
from stoa.simulator.baselines import Both, Hpa, OnDemand
from stoa.simulator.baselines.hpa import HpaMemory

HOUR_S = 3600.0
HEDGES = {  # and which scaler of `elasticity.json` its search begins with
    "spothedge": "spothedge-deadline", "spothedge-hpa": "spothedge-hpa-deadline",
    "spothedge-sageserve": "sageserve-deadline",
}  # fmt: skip
BASES = {"melange": "hpa-deadline", "melange-hourly": "hpa-deadline"}
RIVALS = HEDGES | BASES


def ours(
    world: World, forecast: Requests, making: Making, *, seed: int, at_s: float, spot: bool
) -> Candidate:
    problem = problem_of(forecast, world.zones(seed, spot), making, at_s=at_s)
    plan = solve(problem, gap=0.002, time_limit_s=10.0)
    model = ModelPlan.of(fleet_plan(plan, problem), MODEL)
    return Candidate(lambda: Planned(model), {}, {}, spot=spot, order="deadline")


# -- the others


def rival(name: str, world: World, forecast: Requests, before: Mapping[str, Any]) -> Candidate:
    """At the rate of `world`, on engines like ours. It begins with what `elasticity.py` found (`before`), bounds in
    proportion."""
    every = candidates(world.factor)
    c = replace(every[name if name in HEDGES else BASES[name]], order="deadline")
    usual = candidates(before["factor"])[RIVALS[name]].grid
    known = before["params"][RIVALS[name]]
    moved = {k: c.grid[k][usual[k].index(v)] for k, v in known.items()}
    if name in HEDGES:
        return replace(c, start=c.start | moved)
    least = based(forecast, hourly=name == "melange-hourly")
    free = {k: v for k, v in c.grid.items() if k != "min_replicas"}
    return replace(c, make=partial(_floored, least), grid=free, start={k: moved[k] for k in free})


def based(day: Requests, *, hourly: bool) -> list[int]:
    """[24] what Mélange's program says of one type of machine: as many as the mean work of an hour keeps busy, the busiest
    hour's for all of them, or each its own."""
    _, fit = sizes(day)
    counts = [int(n) for n in np.ceil(work_by(day, fit, 24))]
    return counts if hourly else [max(counts)] * 24


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


def _floored(least: Sequence[int], **params: Any) -> Both:
    return Both(Floored(Hpa(**params), least), OnDemand())


# -- in hindsight


class Hindsight:
    """The program's plans of the second day's true demand, which follows an hour of the first. A period may have the spot
    machines that there are all the time, from `lead_s` before it. With one type of machine the program is: as many as the
    work asks for, the cheapest first."""

    def __init__(
        self, world: World, requests: Requests, periods: int, *, seed: int, lead_s: float = 140.0
    ) -> None:
        begin_s = DAY_S - HOUR_S
        self.requests, self.seed, self.length_s = cut(requests, begin_s, 2 * DAY_S), seed, DAY_S / periods
        day = cut(requests, DAY_S, 2 * DAY_S)
        self.work = work_by(day, sizes(day)[1], periods)
        spot = [later(replace(z, on_demand_hourly=None), begin_s) for z in world.zones(seed, True)]
        self.spot, self.zones = (
            sorted(spot, key=lambda z: z.spot_hourly or 0.0),
            [*spot, *world.zones(seed, False)],
        )
        begins_s = HOUR_S + self.length_s * np.arange(periods)
        self.least = {
            z.name: np.array([_least(z.spot, b - lead_s, b + self.length_s) for b in begins_s])
            for z in spot
            if z.spot is not None
        }

    def period_at(self, at_s: Floats) -> Places:
        """As `Replay` tells it to `Scheduled`; the first one's machines run in the hour before."""
        return np.clip((at_s - HOUR_S) // self.length_s, 0, len(self.work) - 1).astype(np.int64)

    def counts(self, margin: Floats) -> dict[str, Places]:
        left = np.ceil(self.work * margin - 1e-6).astype(np.int64)
        counts = {}
        for zone in self.spot:
            counts[zone.name] = np.minimum(left, self.least[zone.name])
            left = left - counts[zone.name]
        return counts | {"on-demand": left}

    def run(self, margin: Floats) -> tuple[dict[str, float], Floats]:
        """And late requests by period."""
        result = simulate(
            [self.requests], self.zones, PROFILE, Scheduled(self, self.counts(margin)), slo=SLO, seed=self.seed,
            until_s=HOUR_S + DAY_S, options=Options(measure_from_s=HOUR_S, record=len(self.requests)),
        )  # fmt: skip
        assert result.first_s is not None
        first_s = np.where(np.isnan(result.first_s), np.inf, result.first_s)
        arrival_s = self.requests.arrival_s
        late = (first_s - arrival_s > SLO.ttft_s) & (arrival_s >= HOUR_S)
        period = ((arrival_s[late] - HOUR_S) // self.length_s).astype(np.int64)
        return facts(result), np.bincount(period, minlength=len(margin)).astype(np.float64)

    def best(self, tries: int) -> dict[str, float]:
        """The cheapest run that keeps the target, of so many with other margins by period. Where too many are late, the
        periods with most of them get a machine more; where they need not be, those without any have one less."""
        margin, found = np.full(len(self.work), 1.3), []
        one = 1 / np.maximum(self.work, 1.0)
        blocked = np.zeros(len(margin), bool)
        for _ in range(tries):
            run, late = self.run(margin)
            found.append(run)
            if run["attainment"] >= SLO.attainment:
                spare = (late <= 0.02 * late.max()) & ~blocked
                before, margin = margin, np.where(spare, np.maximum(margin - one, 0.3), margin)
                if np.array_equal(margin, before):
                    break
            else:
                order = np.argsort(-late)
                share = np.cumsum(late[order]) / late.sum()
                over = 1 - (1 - SLO.attainment) / (1 - run["attainment"])
                worst = order[: 1 + int(np.searchsorted(share, min(0.6, over)))]
                blocked[worst] = True
                margin = margin.copy()
                margin[worst] += one[worst]
        return min(found, key=rank)


def _least(trace: SpotTrace, begin_s: float, end_s: float) -> int:
    """Machines that are to be had all the time."""
    least, at_s = trace.capacity(begin_s), begin_s
    while (at_s := trace.next_change_s(at_s)) < end_s:
        least = min(least, trace.capacity(at_s))
    return least


def rank(found: Mapping[str, float]) -> tuple[float, float]:
    return max(0.0, SLO.attainment - found["attainment"]), found["cost_usd"]
