"""A plan against a trace: what it promised, and what the simulator says it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stoa.errors import ConfigError
from stoa.fleet.policies.facts import Bounds, Slo
from stoa.planner.files.replay import Replay
from stoa.planner.plan import Plan, Pool, cost_of, place_of, traffic_usd
from stoa.planner.problem import Fit, Period, Problem, Service
from stoa.planner.prove.market import Market, market_of, spot_there
from stoa.planner.prove.scheduled import Scheduled
from stoa.planner.prove.split import split
from stoa.programs import Flags, Floats, Places
from stoa.simulator import Options, Requests, Result, SpotTrace, simulate

MISSED = 0.005  # share by which a promise may be missed in a trial
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class ServiceProof:
    """Shares of a service's requests: promised; in time by first token and pace; by first token; by pace."""

    service: str
    requests: int
    promised: float
    kept: float
    first: float
    pace: float
    ttft_p50_s: float
    ttft_p99_s: float


@dataclass(frozen=True, slots=True)
class PoolProof:
    """`usd`: of its machines, reserved ones not among them. `requests` that it was sent."""

    pool: Pool
    requests: int
    usd: float
    machine_hours: float
    preemptions: int
    ttft_p99_s: float


@dataclass(frozen=True, slots=True)
class Spent:
    """USD: of machines, and what is paid by the request (tokens of hosted models, traffic), which follows who asks."""

    machines: float
    by_request: float

    @property
    def total(self) -> float:
        return self.machines + self.by_request


@dataclass(frozen=True, slots=True)
class Proof:
    """Of the measured part of the replay. `promised`: what the plan says that these hours cost. `late` by period: the
    greatest share of a service's requests whose first token or pace was late."""

    hours: float
    requests: int
    promised: Spent
    spent: Spent
    services: tuple[ServiceProof, ...]
    pools: tuple[PoolProof, ...]
    late: tuple[float, ...]

    @property
    def cost_error(self) -> float:
        """Share by which it costs more than promised."""
        return self.spent.total / self.promised.total - 1 if self.promised.total > 0 else 0.0

    @property
    def kept(self) -> bool:
        """As far as a trial can tell: to half a percent of the requests."""
        return self.shortfall <= MISSED

    @property
    def shortfall(self) -> float:
        """The greatest share by which a service misses its promise; 0 if all keep it."""
        return max((max(0.0, s.promised - s.kept) for s in self.services), default=0.0)


def prove(
    plan: Plan,
    problem: Problem,
    replay: Replay,
    *,
    spot: Mapping[str, SpotTrace] | None = None,
    startup_s: float = 120.0,
    lead_s: float = 900.0,
    seed: int = 0,
) -> Proof:
    """Sends each request of the replay where the plan routes it, and runs every pool's machines as the plan schedules them.
    Where spot machines are missing that the plan can do without, requests go as it says for that loss. Hosted models answer
    as they promise. Nothing reacts to demand that is not as forecast. The first `lead_s` are run and
    not counted. `spot`: machines that could be had, by place. ConfigError if a pool's throughput has no profile, or nobody
    offers spot machines at a place of `spot`."""
    sold = {o.place for o in problem.offers if o.purchase == "spot"}
    for place in (spot or {}).keys() - sold:
        accepted = ", ".join(sorted(sold)) or "none, for nobody offers any"
        raise ConfigError(f"there are no spot machines at {place!r}; accepted: {accepted}", param="spot")
    trial = _Trial(plan, problem, replay, spot or {}, startup_s, min(lead_s, replay.length_s / 4), seed)
    return trial.run()


class _Trial:
    def __init__(
        self,
        plan: Plan,
        problem: Problem,
        replay: Replay,
        spot: Mapping[str, SpotTrace],
        startup_s: float,
        lead_s: float,
        seed: int,
    ) -> None:
        self.plan, self.problem, self.replay = plan, problem, replay
        self.startup_s, self.lead_s, self.seed = startup_s, lead_s, seed
        self.services = {s.name: s for s in problem.services}
        self.bucket = np.asarray(replay.requests.project, np.int64)
        self.service_of = [self.services[b.service] for b in problem.buckets]
        self.ttft_s = np.full(len(replay.requests), np.inf)
        self.tpot_s = np.full(len(replay.requests), np.inf)
        self.counted = replay.requests.arrival_s >= self.lead_s
        self.markets = {
            pool: market_of(
                plan, problem, pool, length_s=replay.length_s, startup_s=startup_s, spot=spot, seed=seed
            )
            for pool in dict.fromkeys(r.pool for r in plan.rented)
        }

    def run(self) -> Proof:
        there = spot_there(self.markets, self.replay, self.startup_s)
        parted = split(self.plan, self.problem, self.replay, there)
        pools, by_request = [], 0.0
        for number, target in enumerate(parted.targets):
            mine = np.flatnonzero(parted.target == number)
            if isinstance(target, Pool):
                pools.append(self._pool(target, mine))
            else:
                by_request += self._api(target, mine)
            by_request += self._traffic_usd(target, mine)
        idle = [pool for pool in self.markets if pool not in parted.targets]
        pools += [self._pool(pool, np.empty(0, np.int64)) for pool in idle]
        hours = (self.replay.length_s - self.lead_s) / _HOUR_S
        counted = int(self.counted.sum())
        spent = Spent(self._reserved_usd() + sum(p.usd for p in pools), by_request)
        return Proof(hours, counted, self._promised(), spent, self._services(), tuple(pools), self._late())

    # -- machines

    def _pool(self, pool: Pool, mine: Places) -> PoolProof:
        fit = self._fit(pool)
        market = self.markets.get(pool)
        if market is None:
            return PoolProof(pool, len(mine), 0.0, 0.0, 0, math.inf)
        found = self._simulate(fit, self.replay.requests.part(mine), market, self._strictest(mine))
        assert found.first_s is not None
        assert found.end_s is not None
        arrival_s = self.replay.requests.arrival_s[mine]
        first_s = np.where(np.isnan(found.first_s), np.inf, found.first_s)
        self.ttft_s[mine] = first_s - arrival_s + self._latency_s(pool.place, mine)
        decoded = np.maximum(self.replay.requests.output_tokens[mine] - 1, 1)
        with np.errstate(invalid="ignore"):
            pace_s = (np.where(np.isnan(found.end_s), np.inf, found.end_s) - first_s) / decoded
        self.tpot_s[mine] = np.where(np.isnan(pace_s), np.inf, pace_s)
        return PoolProof(
            pool, len(mine), found.cost_usd, found.total_machine_hours, found.preemptions, found.ttft_p99_s
        )

    def _simulate(self, fit: Fit, requests: Requests, market: Market, ttft_s: float) -> Result:
        assert fit.profile is not None
        return simulate(
            [requests], market.zones, fit.profile, Scheduled(self.replay, market.counts),
            slo=Slo(ttft_s), bounds=Bounds(), seed=self.seed, until_s=self.replay.length_s,
            options=Options(
                measure_from_s=self.lead_s, record=len(requests), adapters_each=0, history_s=600.0, drain="finish",
                room=int(sum(int(c.max()) for c in market.counts.values())) * 2 + 64,
            ),
        )  # fmt: skip

    def _fit(self, pool: Pool) -> Fit:
        fit = self.problem.fit(pool.machine, pool.model, pool.pace)
        if fit.profile is None:
            raise ConfigError(f"{pool.name}: nothing says how long its steps take", param="throughput")
        return fit

    def _strictest(self, mine: Places) -> float:
        asked = {self.service_of[k].ttft_s for k in np.unique(self.bucket[mine])}
        return min(asked, default=min(s.ttft_s for s in self.problem.services))

    def _latency_s(self, place: str, mine: Places) -> Floats:
        each = np.array([self.problem.network.way_s(b.origin, place) for b in self.problem.buckets])
        return np.asarray(each[self.bucket[mine]], np.float64)

    # -- hosted models, and money

    def _api(self, name: str, mine: Places) -> float:
        api = self.problem.api(name)
        self.ttft_s[mine] = api.ttft_s + self._latency_s(api.place, mine)
        self.tpot_s[mine] = api.tpot_s
        requests = self.replay.requests.part(mine[self.counted[mine]])
        return float(
            sum(
                api.request_usd(p, o)
                for p, o in zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
            )
        )

    def _traffic_usd(self, target: Pool | str, mine: Places) -> float:
        place = place_of(self.problem, target)
        each = np.array([traffic_usd(self.problem, k, place) for k in range(len(self.problem.buckets))])
        return float(each[self.bucket[mine[self.counted[mine]]]].sum())

    def _reserved_usd(self) -> float:
        prices = {(o.place, o.machine): o.hourly_usd for o in self.problem.offers if o.purchase == "reserved"}
        hours = (self.replay.length_s - self.lead_s) / _HOUR_S
        return sum(n * prices[key] * hours for key, n in self.plan.reserved.items())

    def _promised(self) -> Spent:
        """The plan's cost of the measured hours of each period."""
        periods = zip(self.problem.periods, self._hours().tolist(), strict=True)
        measured = replace(self.problem, periods=tuple(Period(p.name, hours) for p, hours in periods))
        costs = cost_of(measured, self.plan.rented, self.plan.reserved, self.plan.routes)
        return Spent(sum(costs.machines.values()), costs.api + costs.network)

    def _hours(self) -> Floats:
        """[T] measured hours of each period."""
        minutes = np.arange(self.lead_s, self.replay.length_s, 60.0)
        period = self.replay.period_at(minutes)
        length = np.minimum(60.0, self.replay.length_s - minutes)
        return np.bincount(period, length, len(self.problem.periods)) / _HOUR_S

    # -- promises

    def _services(self) -> tuple[ServiceProof, ...]:
        of = np.array([self.problem.services.index(s) for s in self.service_of])[self.bucket]
        found = []
        for number, service in enumerate(self.problem.services):
            mine = (of == number) & self.counted
            if mine.any():
                found.append(self._service(service, mine))
        return tuple(found)

    def _late(self) -> tuple[float, ...]:
        number = np.array([self.problem.services.index(s) for s in self.service_of])[self.bucket]
        period = self.replay.period_at(self.replay.requests.arrival_s)
        shape = (len(self.problem.services), len(self.problem.periods))
        cell = number * shape[1] + period
        every = np.bincount(cell[self.counted], minlength=shape[0] * shape[1])
        late = np.bincount(cell[self.counted & ~(self._first & self._pace)], minlength=shape[0] * shape[1])
        worst = (late / np.maximum(every, 1)).reshape(shape).max(axis=0)
        return tuple(worst.tolist())

    @property
    def _first(self) -> Flags:
        """Of each request: did its first token come in time?"""
        target_s = np.array([s.ttft_s for s in self.service_of])[self.bucket]
        return np.asarray(self.ttft_s <= target_s * (1 + 1e-9), np.bool_)

    @property
    def _pace(self) -> Flags:
        target_s = np.array([s.tpot_s for s in self.service_of])[self.bucket]
        return np.asarray(self.tpot_s <= target_s * (1 + 1e-9), np.bool_)

    def _service(self, service: Service, mine: Flags) -> ServiceProof:
        first, pace = self._first[mine], self._pace[mine]
        half_s, most_s = np.quantile(self.ttft_s[mine], (0.5, 0.99), method="higher").tolist()
        return ServiceProof(
            service.name, int(mine.sum()), service.attainment,
            float(np.mean(first & pace)), float(np.mean(first)), float(np.mean(pace)), half_s, most_s,
        )  # fmt: skip
