"""A problem as arrays: what can serve what, and what each is worth. K buckets, T periods, J pools, A APIs, M options."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stoa.errors import ConfigError
from stoa.planner.eligible import api_in_time, in_time
from stoa.planner.plan import Pool, traffic_usd
from stoa.planner.problem import Fit, Offer, Problem
from stoa.planner.program.dominated import needed
from stoa.planner.program.worlds import World, worlds
from stoa.programs import Flags, Floats, Places

HOUR_S = 3600.0


class Unservable(ConfigError):
    """Demand that no machine and no API may serve, or can serve in time."""


@dataclass(frozen=True, slots=True)
class View:
    """Targets are pools, then APIs: J + A columns. `load` [K, J]: seconds of a replica a request takes, infinite where it
    may not go; `usd` [K, J + A]: what a request costs beside the machines, infinite likewise."""

    problem: Problem
    pools: tuple[Pool, ...]
    fits: tuple[Fit, ...]  # of the pools
    options: tuple[tuple[Offer, int], ...]  # offer, number of the pool
    load: Floats
    usd: Floats
    hours: Floats  # [T] in the horizon
    worlds: tuple[World, ...]

    @property
    def pool_of(self) -> Places:
        """[M] number of the option's pool."""
        return np.array([j for _, j in self.options], np.int64)

    @property
    def place_of(self) -> tuple[str, ...]:
        """[J + A]"""
        return (*(p.place for p in self.pools), *(a.place for a in self.problem.apis))


def view(problem: Problem) -> View:
    """Raises Unservable, which names the first bucket that cannot be served and what would be the best for it."""
    pools, fits, options = _pools(problem)
    load, usd = _matrices(problem, pools, fits)
    for k, bucket in enumerate(problem.buckets):
        if not np.isfinite(usd[k]).any() and any(bucket.rates):
            raise Unservable(_why_not(problem, k), param="demand")
    may = worlds(problem, options)
    whole = View(problem, pools, fits, options, load, usd, np.array(problem.hours), may)
    return narrowed(whole, needed(problem, options, pools, fits, load, usd, may))


def narrowed(v: View, keep: Flags) -> View:
    """With these options [M] alone. Pools without any stay, and get no requests."""
    options = tuple(option for option, kept in zip(v.options, keep, strict=True) if kept)
    idle = np.setdiff1d(np.arange(len(v.pools)), [j for _, j in options])
    load, usd = v.load.copy(), v.usd.copy()
    load[:, idle] = usd[:, idle] = np.inf
    lost = tuple(replace(w, lost=w.lost[keep]) for w in v.worlds)
    return replace(v, options=options, load=load, usd=usd, worlds=lost)


def _pools(problem: Problem) -> tuple[tuple[Pool, ...], tuple[Fit, ...], tuple[tuple[Offer, int], ...]]:
    number: dict[Pool, int] = {}
    fits: list[Fit] = []
    options: list[tuple[Offer, int]] = []
    for offer in problem.offers:
        for fit in problem.fits:
            if fit.machine == offer.machine and offer.limit != 0 and offer.availability > 0:
                pool = Pool(offer.place, offer.machine, fit.model, fit.pace)
                if pool not in number:
                    number[pool] = len(fits)
                    fits.append(fit)
                options.append((offer, number[pool]))
    return tuple(number), tuple(fits), tuple(options)


def _matrices(problem: Problem, pools: tuple[Pool, ...], fits: tuple[Fit, ...]) -> tuple[Floats, Floats]:
    services = {s.name: s for s in problem.services}
    places = {g.name: g.places for g in problem.groups}
    load = np.full((len(problem.buckets), len(pools)), np.inf)
    usd = np.full((len(problem.buckets), len(pools) + len(problem.apis)), np.inf)
    for k, bucket in enumerate(problem.buckets):
        service, allowed = services[bucket.service], places[bucket.group]
        for j, (pool, fit) in enumerate(zip(pools, fits, strict=True)):
            if pool.place in allowed and in_time(problem, bucket, service, fit, pool.place, k):
                load[k, j] = fit.load_s[k]
                usd[k, j] = traffic_usd(problem, k, pool.place)
        for a, api in enumerate(problem.apis):
            if api.place in allowed and api_in_time(problem, bucket, service, api):
                tokens_usd = api.request_usd(bucket.prompt_tokens, bucket.output_tokens)
                usd[k, len(pools) + a] = tokens_usd + traffic_usd(problem, k, api.place)
    return load, usd


def _why_not(problem: Problem, k: int) -> str:
    """Why nothing serves the bucket, and the fastest there would be."""
    bucket = problem.buckets[k]
    service = next(s for s in problem.services if s.name == bucket.service)
    group = next(g for g in problem.groups if g.name == bucket.group)
    offered = {(o.place, o.machine) for o in problem.offers if o.limit != 0}
    able: list[tuple[float, str]] = []
    for fit in problem.fits:
        for place, machine in offered:
            if machine == fit.machine and fit.model in service.models and place in group.places:
                delay_s = problem.network.way_s(bucket.origin, place)
                able.append((fit.ttft_s[k] + delay_s, f"{fit.model} on {machine} at {place}"))
    for api in problem.apis:
        if api.model in service.models and api.place in group.places:
            delay_s = problem.network.way_s(bucket.origin, api.place)
            able.append((api.ttft_s + delay_s, f"{api.name} at {api.place}"))
    if not able:
        where = ", ".join(sorted(group.places)) or "nowhere"
        return f"nobody may serve {bucket.name}: {', '.join(service.models)} is not to be had at {where}"
    ttft_s, best = min(able)
    wanted = f"{service.ttft_s:g} s to the first token and {service.tpot_s:g} s for each other"
    return f"nothing serves {bucket.name} in time ({wanted}); the best is {best}, {ttft_s:.3g} s to the first token"
