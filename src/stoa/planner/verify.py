"""Checks a plan against its problem by arithmetic alone. It knows no solver and shares no code with one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from stoa.errors import StoaError
from stoa.planner.losses import Loss, losses
from stoa.planner.plan import Plan, Pool, cost_of
from stoa.planner.problem import Problem, Purchase

_EPS = 1e-5  # shares and machines


class BrokenPlan(StoaError):
    """A plan that does not keep its problem's rules: a fault of whoever made it. The message names the first broken rule."""

    status = 500
    code = "broken_plan"


def verify(plan: Plan, problem: Problem) -> None:
    """Raises BrokenPlan."""
    _costs(plan, problem)
    _machines(plan, problem)
    for scenario in problem.likely:
        _World(plan, problem, scenario.name, scenario.factors).check()
    flat = (1.0,) * len(problem.periods)
    for loss in losses(problem):
        _World(plan, problem, loss.name, flat, loss).check()


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPlan(what)


def _costs(plan: Plan, problem: Problem) -> None:
    lengths = {len(r.counts) for r in plan.rented} | {len(r.shares) for r in plan.routes}
    _require(lengths <= {len(problem.periods)}, "it has other periods")
    _require(all(0 <= r.bucket < len(problem.buckets) for r in plan.routes), "it has other buckets")
    try:
        again = cost_of(problem, plan.rented, plan.reserved, plan.routes)
    except KeyError:
        raise BrokenPlan("it has machines or services that are not offered") from None
    _require(
        abs(again.total - plan.costs.total) <= 1e-6 * max(1.0, again.total), "its cost is not what it says"
    )
    budget = problem.rules.budget_usd
    _require(budget is None or again.total <= budget * (1 + _EPS), f"{again.total:.2f} USD exceed the budget")


def _machines(plan: Plan, problem: Problem) -> None:
    offers = {(o.place, o.machine, o.purchase): o for o in problem.offers}
    fits = {(f.machine, f.model, f.pace) for f in problem.fits}
    used: dict[tuple[str, str, Purchase], list[int]] = defaultdict(lambda: [0] * len(problem.periods))
    for each in plan.rented:
        _require(
            (each.pool.machine, each.pool.model, each.pool.pace) in fits,
            f"{each.pool.name} has no throughput",
        )
        key = (each.pool.place, each.pool.machine, each.purchase)
        _require(key in offers, f"nobody offers {key}")
        for t, count in enumerate(each.counts):
            _require(count >= 0, "machines below 0")
            used[key][t] += count
    for key, counts in used.items():
        limit = offers[key].limit
        _require(
            limit is None or max(counts) <= limit, f"more than the {limit} machines of {offers[key].name}"
        )
        if key[2] == "reserved":
            _require(
                max(counts) <= plan.reserved.get(key[:2], 0), f"more {key[1]} than are reserved at {key[0]}"
            )
        elif key[2] != "owned" and problem.rules.ramp is not None:
            steps = [abs(counts[t] - counts[t - 1]) for t in range(len(counts))]
            _require(max(steps) <= problem.rules.ramp, f"{offers[key].name} changes faster than the ramp")
    for (place, machine), count in plan.reserved.items():
        limit = problem.offer(place, machine, "reserved").limit
        _require(
            limit is None or count <= limit,
            f"{count} {machine} are reserved at {place}, and {limit} are offered",
        )
    for (place, machine), count in problem.committed.items():
        _require(
            plan.reserved.get((place, machine), 0) >= count, f"{machine} at {place} is committed to already"
        )
    _carbon(plan, problem)


def _carbon(plan: Plan, problem: Problem) -> None:
    if problem.rules.carbon_kg is None:
        return
    power = {m.name: m.power_kw or 0.0 for m in problem.machines}
    carbon = {p.name: p.carbon_g_per_kwh or 0.0 for p in problem.places}
    kg = sum(
        count
        * h
        * power[each.pool.machine]
        * carbon[each.pool.place]
        / 1000
        * problem.offer(each.pool.place, each.pool.machine, each.purchase).availability
        for each in plan.rented
        for count, h in zip(each.counts, problem.hours, strict=True)
    )
    _require(kg <= problem.rules.carbon_kg * (1 + _EPS), f"{kg:.1f} kg of carbon exceed the limit")


class _World:
    """One world's routes: is everybody served, by whoever may, within what is there?"""

    def __init__(
        self,
        plan: Plan,
        problem: Problem,
        name: str,
        factors: tuple[float, ...],
        loss: Loss | None = None,
    ) -> None:
        self.plan, self.problem, self.name, self.factors, self.loss = plan, problem, name, factors, loss
        self.services = {s.name: s for s in problem.services}
        self.fits = {(f.machine, f.model, f.pace): f for f in problem.fits}
        self.apis = {a.name: a for a in problem.apis}
        self.places = {g.name: g.places for g in problem.groups}

    def check(self) -> None:
        periods = range(len(self.problem.periods))
        served: dict[int, list[float]] = defaultdict(lambda: [0.0 for _ in periods])
        busy: dict[Pool, list[float]] = defaultdict(lambda: [0.0 for _ in periods])
        adapters: dict[Pool, list[float]] = defaultdict(lambda: [0.0 for _ in periods])
        called: dict[str, list[tuple[float, float]]] = defaultdict(lambda: [(0.0, 0.0) for _ in periods])
        for route in (r for r in self.plan.routes if r.world == self.name):
            self._allowed(route.bucket, route.target)
            bucket = self.problem.buckets[route.bucket]
            for t, share in enumerate(route.shares):
                _require(share >= 0, "a share below 0")
                served[route.bucket][t] += share
                rate = bucket.rates[t] * self.factors[t] * self.problem.margin(t) * share
                if isinstance(route.target, Pool):
                    fit = self.fits[route.target.machine, route.target.model, route.target.pace]
                    busy[route.target][t] += rate * fit.load_s[route.bucket] if share else 0.0
                    adapters[route.target][t] += bucket.adapters_gib * share
                else:
                    requests, tokens = called[route.target][t]
                    size = bucket.prompt_tokens + bucket.output_tokens
                    called[route.target][t] = (requests + rate, tokens + rate * size)
        self._everybody(served)
        self._within(busy, adapters)
        for name, series in called.items():
            for requests, tokens in series:
                _require(
                    requests <= self.apis[name].requests_per_s * (1 + _EPS) + _EPS, f"too much for {name}"
                )
                _require(tokens <= self.apis[name].tokens_per_s * (1 + _EPS) + _EPS, f"too much for {name}")

    def _everybody(self, served: Mapping[int, list[float]]) -> None:
        for k, bucket in enumerate(self.problem.buckets):
            for t, rate in enumerate(bucket.rates):
                needed = rate > 0 and self.factors[t] > 0
                if needed and not (self.loss and not self.services[bucket.service].survives):
                    share = served[k][t] if k in served else 0.0
                    what = (
                        f"{self.name}, {self.problem.periods[t].name}: {share:.6f} of {bucket.name} is served"
                    )
                    _require(abs(share - 1) <= _EPS, what)

    def _within(self, busy: Mapping[Pool, list[float]], adapters: Mapping[Pool, list[float]]) -> None:
        strain = self.problem.rules.strain if self.loss else 1.0
        for pool, series in busy.items():
            room = self.fits[pool.machine, pool.model, pool.pace].adapters_gib
            for t, work in enumerate(series):
                there = self._there(pool, t)
                where = f"{self.name}, {self.problem.periods[t].name}: {pool.name}"
                _require(
                    work <= there * strain + _EPS * max(1.0, there),
                    f"{where} has work for {work:.4f} of {there * strain:.4f}",
                )
                if adapters[pool][t] > 0:
                    _require(
                        adapters[pool][t] <= room * there * (1 + _EPS) + _EPS,
                        f"{where} lacks memory for adapters",
                    )

    def _there(self, pool: Pool, t: int) -> float:
        total = 0.0
        for each in (r for r in self.plan.rented if r.pool == pool):
            offer = self.problem.offer(pool.place, pool.machine, each.purchase)
            if self.loss is None or not self.loss.takes(offer):
                total += each.counts[t] * offer.availability
        return total

    def _allowed(self, k: int, target: Pool | str) -> None:
        bucket = self.problem.buckets[k]
        service = self.services[bucket.service]
        if isinstance(target, Pool):
            fit = self.fits[target.machine, target.model, target.pace]
            place, model, ttft_s = target.place, target.model, fit.ttft_s[k]
            _require(fit.load_s[k] < float("inf"), f"{target.name} cannot serve {bucket.name} in time")
        else:
            api = self.apis[target]
            place, model, ttft_s = api.place, api.model, api.ttft_s
            _require(api.tpot_s <= service.tpot_s, f"{target} is too slow for {bucket.name}")
            _require(bucket.prompt_tokens <= api.max_prompt_tokens, f"{bucket.name} is too long for {target}")
        latency_s = self.problem.network.way_s(bucket.origin, place)
        _require(place in self.places[bucket.group], f"{bucket.name} may not be served at {place}")
        _require(model in service.models, f"{model} may not answer {bucket.name}")
        _require(
            bucket.late or ttft_s + latency_s <= service.ttft_s,
            f"{bucket.name} is not served in time at {place}",
        )
        gone = self.loss is not None and not self.loss.spot and place == self.loss.place
        _require(not gone, f"{place} is lost, and yet serves {bucket.name}")
