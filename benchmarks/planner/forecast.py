"""Plans for `robust.py`: a problem from a day of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from elasticity import DAY_S, HOURLY, PROFILE, SLO

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
from stoa.programs import Floats, Places
from stoa.simulator import Requests, SpotTrace, Zone

MACHINE = MachineType("2xA100-80GB", "A100-80GB", 2, 160.0)
MODEL = "llama2-70b"
SERVICE = Service("chat", (MODEL,), SLO.ttft_s, attainment=SLO.attainment)
PROMPTS, OUTPUTS = (512.0, 2048.0), (128.0, 512.0)  # edges of sizes
WINDOW_S = 120.0  # bursts of work that quantiles are of: a startup time


@dataclass(frozen=True)
class Making:
    """How a plan is made of a day. `quantile` of an hour's work in windows is what it is bought for; None: the mean.
    `survive`: all spot machines of any one zone may be lost."""

    quantile: float | None = None
    survive: bool = False


def problem_of(day: Requests, zones: Sequence[Zone], making: Making, *, at_s: float) -> Problem:
    """Hourly, from the requests of a day. Spot machines are there as they were in the week before `at_s`."""
    buckets, fit = sizes(day)
    margin = (
        np.ones(24) if making.quantile is None else burst(day, fit, making.quantile) / work_by(day, fit, 24)
    )
    offers = [Offer(z.name, MACHINE.name, "on_demand", HOURLY) for z in zones]
    offers += [
        Offer(z.name, MACHINE.name, "spot", z.spot_hourly, z.spot.scale, share)
        for z in zones
        if z.spot is not None and z.spot_hourly is not None and (share := share_before(z.spot, at_s)) > 0
    ]
    rules = Rules(
        margin=tuple(np.maximum(1.0, margin).tolist()),
        survive_spot=making.survive and any(o.purchase == "spot" for o in offers),
    )
    places = [z.name for z in zones]
    return check(
        Problem(
            tuple(Period(f"{h:02}:00", 1.0) for h in range(24)), tuple(Place(name) for name in places), (MACHINE,),
            tuple(offers), (fit,), (SERVICE,), (Group("all", frozenset(places)),), buckets, rules=rules,
        )
    )  # fmt: skip


def share_before(trace: SpotTrace, at_s: float, days: float = 7.0) -> float:
    """Of the days before, with machines to be had."""
    seen = [trace.capacity(t) > 0 for t in np.arange(at_s - days * DAY_S, at_s, trace.gap_s)]
    return float(np.mean(seen))


# -- demand


def bucket_of(requests: Requests) -> Places:
    prompt = np.searchsorted(PROMPTS, requests.prompt_tokens)
    return np.asarray(
        prompt * (len(OUTPUTS) + 1) + np.searchsorted(OUTPUTS, requests.output_tokens), np.int64
    )


def sizes(day: Requests) -> tuple[tuple[Bucket, ...], Fit]:
    """Buckets with their rates by hour, and what a request of each takes of a replica."""
    bucket, count = bucket_of(day), (len(PROMPTS) + 1) * (len(OUTPUTS) + 1)
    hour = (day.arrival_s * 24 / DAY_S).astype(np.int64)
    rates = np.bincount(bucket * 24 + hour, minlength=count * 24).reshape(count, 24) * 24 / DAY_S
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
    period = (day.arrival_s * periods / DAY_S).astype(np.int64)
    return np.bincount(period, work, periods) * periods / DAY_S


def burst(day: Requests, fit: Fit, quantile: float) -> Floats:
    """[24] the quantile of the work in windows of each hour."""
    by_hour = work_by(day, fit, round(DAY_S / WINDOW_S)).reshape(24, -1)
    return np.asarray(np.quantile(by_hour, quantile, axis=1), np.float64)
