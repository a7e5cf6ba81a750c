"""Plans for `robust.py`: a problem from a day of requests, what Mélange's program makes of it, a program in hindsight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from elasticity import DAY_S, HOURLY, PROFILE, SLO
from tests.planner.melange import Case, cheapest

from stoa.planner.check import check
from stoa.planner.problem import (
    Bucket,
    Fit,
    Group,
    MachineType,
    Offer,
    Period,
    Place,
    Problem,
    Rules,
    Service,
)
from stoa.planner.profiles.service import loads_of
from stoa.planner.program import solve
from stoa.programs import Floats, Places
from stoa.simulator import Requests, SpotTrace, Zone

HOUR_S = 3600.0
MACHINE = MachineType("2xA100-80GB", "A100-80GB", 2, 160.0)
MODEL = "llama2-70b"
SERVICE = Service("chat", (MODEL,), SLO.ttft_s, attainment=SLO.attainment)
CONTRACT = "contract"  # where reserved machines are, whichever zone that is
RESERVED = 0.6  # of the price on demand: assumed; a p4d for a year without upfront payment is about that
PROMPTS, OUTPUTS = (512.0, 2048.0), (128.0, 512.0)  # edges of sizes
WINDOW_S = 120.0  # bursts of work that quantiles are of: a startup time


@dataclass(frozen=True)
class Making:
    """How a plan is made of a day. `quantile` of an hour's work in windows is what it is bought for; None: the mean.
    `survive`: all spot machines of any one zone may be lost."""

    quantile: float | None = None
    survive: bool = False


def problem_of(
    day: Requests, zones: Sequence[Zone], making: Making, *, at_s: float, reserved: bool, spot: bool
) -> Problem:
    """Hourly, from the requests of a day. Spot machines are there as they were in the week before `at_s`."""
    buckets, fit = sizes(day, 24)
    work = work_by(day, fit, 24)
    margin = np.ones(24) if making.quantile is None else burst(day, buckets, fit, making.quantile) / work
    offers = [Offer(z.name, MACHINE.name, "on_demand", HOURLY) for z in zones]
    for z in zones if spot else ():
        share = share_before(z.spot, at_s)
        if z.spot is not None and share > 0:
            price = z.spot_hourly or HOURLY
            offers.append(Offer(z.name, MACHINE.name, "spot", price, z.spot.scale, share))
    if reserved:
        offers.append(Offer(CONTRACT, MACHINE.name, "reserved", RESERVED * HOURLY))
    rules = Rules(margin=tuple(np.maximum(1.0, margin).tolist()), survive_spot=making.survive and spot)
    periods = tuple(Period(f"{h:02}:00", 1.0) for h in range(24))
    return _problem(periods, [z.name for z in zones], offers, buckets, fit, rules)


def _problem(
    periods: tuple[Period, ...],
    zones: Sequence[str],
    offers: Sequence[Offer],
    buckets: Sequence[Bucket],
    fit: Fit,
    rules: Rules,
) -> Problem:
    places = (*zones, CONTRACT)
    return check(
        Problem(
            periods, tuple(Place(name) for name in places), (MACHINE,), tuple(offers), (fit,), (SERVICE,),
            (Group("all", frozenset(places)),), tuple(buckets), rules=rules,
        )
    )  # fmt: skip


def share_before(trace: SpotTrace | None, at_s: float, days: float = 7.0) -> float:
    """Of the days before, with machines to be had."""
    if trace is None:
        return 1.0
    seen = [trace.capacity(t) > 0 for t in np.arange(at_s - days * DAY_S, at_s, trace.gap_s)]
    return float(np.mean(seen))


# -- demand


def bucket_of(requests: Requests) -> Places:
    prompt = np.searchsorted(PROMPTS, requests.prompt_tokens)
    return np.asarray(
        prompt * (len(OUTPUTS) + 1) + np.searchsorted(OUTPUTS, requests.output_tokens), np.int64
    )


def sizes(day: Requests, periods: int) -> tuple[tuple[Bucket, ...], Fit]:
    """Buckets with their rates in equal periods of the day, and what a request of each takes of a replica."""
    bucket, count = bucket_of(day), (len(PROMPTS) + 1) * (len(OUTPUTS) + 1)
    length_s = DAY_S / periods
    period = np.minimum((day.arrival_s / length_s).astype(np.int64), periods - 1)
    rates = (
        np.bincount(bucket * periods + period, minlength=count * periods).reshape(count, periods) / length_s
    )
    each = np.maximum(np.bincount(bucket, minlength=count), 1)
    prompt = np.maximum(1.0, np.bincount(bucket, day.prompt_tokens, count) / each)
    output = np.maximum(1.0, np.bincount(bucket, day.output_tokens, count) / each)
    long = prompt > PROMPTS[-1]  # by the work alone: whether they are in time is for the run to show
    buckets = tuple(
        Bucket(
            SERVICE.name, "all", float(prompt[k]), float(output[k]), tuple(rates[k].tolist()), late=bool(long[k])
        )
        for k in range(count)
    )  # fmt: skip
    ttft_s = np.where(long, np.inf, SERVICE.ttft_s)
    load, first = loads_of([PROFILE], prompt, output, ttft_s, [SERVICE.tpot_s] * count)
    return buckets, Fit(
        MACHINE.name, MODEL, tuple(load[0].tolist()), tuple(first[0].tolist()), profile=PROFILE
    )


def work_by(day: Requests, fit: Fit, periods: int) -> Floats:
    """[periods] replicas that the work of each keeps busy."""
    work = np.array(fit.load_s)[bucket_of(day)]
    period = np.minimum((day.arrival_s * periods / DAY_S).astype(np.int64), periods - 1)
    return np.bincount(period, work, periods) * periods / DAY_S


def burst(day: Requests, buckets: Sequence[Bucket], fit: Fit, quantile: float) -> Floats:
    """[24] the quantile of the work in windows of each hour."""
    windows = round(DAY_S / WINDOW_S)
    by_hour = work_by(day, fit, windows).reshape(24, -1)
    return np.asarray(np.quantile(by_hour, quantile, axis=1), np.float64)


# -- Mélange


def melange(day: Requests, *, hourly: bool) -> list[int]:
    """Machines by hour: its program solved for the busiest hour, which is for all of them, or for each."""
    buckets, fit = sizes(day, 24)
    counts = []
    for h in range(24) if hourly else (int(np.argmax(work_by(day, fit, 24))),):
        shape = (len(PROMPTS) + 1, len(OUTPUTS) + 1)
        rates = np.array([b.rates[h] for b in buckets]).reshape(shape)
        tputs = {MACHINE.name: 1 / np.array(fit.load_s).reshape(shape)}
        found = cheapest(Case({MACHINE.name: HOURLY}, tputs, rates / rates.sum(), float(rates.sum()), 8))
        assert found is not None
        counts.append(int(found.counts[MACHINE.name]))
    return counts if hourly else counts * 24


# -- in hindsight

Counts = dict[tuple[str, str], Places]  # machines by period, by zone and market


class Hindsight:
    """The program's plans of a day's true demand, period by period: a period's limits are the spot machines that it, and
    the `lead_s` before it, really have all the time."""

    def __init__(
        self, day: Requests, zones: Sequence[Zone], periods: int, *, begins_s: float, lead_s: float
    ) -> None:
        self.zones, self.periods = zones, periods
        self.buckets, self.fit = sizes(day, periods)
        self.work = work_by(day, self.fit, periods)
        self.length_s = DAY_S / periods
        self.least = [
            {z.name: least_of(z.spot, b - lead_s, b + self.length_s) for z in zones}
            for b in begins_s + self.length_s * np.arange(periods)
        ]
        self._known: dict[tuple[int, float, int], tuple[tuple[str, str, int], ...]] = {}

    def counts(self, margin: Floats, committed: int = 0) -> Counts:
        """`committed`: reserved machines, in all periods."""
        names = (*(z.name for z in self.zones), CONTRACT)
        counts = {
            (name, m): np.zeros(self.periods, np.int64) for name in names for m in ("spot", "on_demand")
        }
        for t in range(self.periods):
            for place, market, n in self._period(t, round(float(margin[t]), 6), committed):
                counts[place, market][t] += n
        counts[CONTRACT, "on_demand"][:] = committed
        return counts

    def usd(self, counts: Counts) -> float:
        """Of the machines by the hour."""
        price = {(z.name, "spot"): z.spot_hourly or HOURLY for z in self.zones}
        return sum(
            float(n.sum()) * price.get(key, HOURLY) * self.length_s / HOUR_S
            for key, n in counts.items()
            if key[0] != CONTRACT
        )

    def _period(self, t: int, margin: float, committed: int) -> tuple[tuple[str, str, int], ...]:
        key = (t, margin, committed)
        if key not in self._known:
            plan = solve(self._problem(t, margin, committed), threads=1)
            self._known[key] = tuple((pool.place, purchase, n) for pool, purchase, n in plan.machines(0))
        return tuple(each for each in self._known[key] if each[1] != "owned")

    def _problem(self, t: int, margin: float, committed: int) -> Problem:
        offers = [Offer(self.zones[0].name, MACHINE.name, "on_demand", HOURLY)]
        for z in self.zones:
            if self.least[t][z.name]:
                price = z.spot_hourly or HOURLY
                offers.append(Offer(z.name, MACHINE.name, "spot", price, self.least[t][z.name]))
        if committed:
            offers.append(Offer(CONTRACT, MACHINE.name, "owned", 0.0, committed))
        now = tuple(replace(b, rates=(b.rates[t],)) for b in self.buckets)
        period = (Period(f"{t}", self.length_s / HOUR_S),)
        return _problem(period, [z.name for z in self.zones], offers, now, self.fit, Rules(margin=(margin,)))


def least_of(trace: SpotTrace | None, begin_s: float, end_s: float) -> int:
    """Machines that are to be had all the time."""
    if trace is None:
        return 0
    least, at_s = trace.capacity(begin_s), begin_s
    while (at_s := trace.next_change_s(at_s)) < end_s:
        least = min(least, trace.capacity(at_s))
    return least


def sharpened(
    late_by: Callable[[Floats], tuple[float, Floats, float]], work: Floats, tries: int
) -> tuple[Floats, float]:
    """Margins by period with which the target is kept at the least cost that `tries` runs find, and that cost. `late_by`:
    (attainment, late requests by period, USD) with such margins. Where too many are late, the periods with most of them
    get a machine more; where they need not be, those without any have one less."""
    margin, best, best_usd = np.full(len(work), 1.3), np.full(len(work), 1.3), np.inf
    one = 1 / np.maximum(work, 1.0)
    blocked = np.zeros(len(work), bool)
    for _ in range(tries):
        before = margin
        attainment, late, usd = late_by(margin)
        if attainment >= SLO.attainment:
            if usd < best_usd:
                best, best_usd = margin.copy(), usd
            spare = (late <= 0.02 * late.max()) & ~blocked
            if not spare.any():
                break
            margin = np.where(spare, np.maximum(margin - one, 0.3), margin)
            if np.array_equal(margin, before):
                break
        else:
            order = np.argsort(-late)
            share = np.cumsum(late[order]) / late.sum()
            over = 1 - (1 - SLO.attainment) / (1 - attainment)
            worst = order[: 1 + int(np.searchsorted(share, min(0.6, over)))]
            blocked[worst] = True
            margin = margin.copy()
            margin[worst] += one[worst]
    return best, best_usd
