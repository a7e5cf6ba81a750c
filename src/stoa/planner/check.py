"""A problem's numbers, names and lengths, before anybody reckons with them."""

from __future__ import annotations

import math

from stoa.checks import known, length, unique, within
from stoa.errors import ConfigError
from stoa.planner.losses import Loss
from stoa.planner.problem import Problem


def check(problem: Problem) -> Problem:
    """ConfigError for names that do not exist or stand twice, and for numbers that cannot be."""
    _names(problem)
    _numbers(problem)
    _lengths(problem)
    return problem


def _names(problem: Problem) -> None:
    places = unique("place", (p.name for p in problem.places))
    machines = unique("machine", (m.name for m in problem.machines))
    services = unique("service", (s.name for s in problem.services))
    groups = unique("group", (g.name for g in problem.groups))
    unique("api", (a.name for a in problem.apis))
    unique("period", (p.name for p in problem.periods))
    lost = {loss.name for p in problem.places for loss in (Loss(p.name), Loss(p.name, spot=True))}
    for name in unique("scenario", (s.name for s in problem.scenarios)) & lost:
        raise ConfigError(f"a scenario is called {name!r}, as a loss is", param="scenarios")
    unique("offer", (o.name for o in problem.offers))
    unique("fit", (" ".join((f.model, f.machine, f.pace)) for f in problem.fits))
    for offer in problem.offers:
        known(offer.name, "place", (offer.place,), places)
        known(offer.name, "machine", (offer.machine,), machines)
    for fit in problem.fits:
        known(f"the throughput of {fit.model}", "machine", (fit.machine,), machines)
    for api in problem.apis:
        known(f"api {api.name}", "place", (api.place,), places)
    for group in problem.groups:
        known(f"group {group.name}", "place", group.places, places)
    models = {f.model for f in problem.fits} | {a.model for a in problem.apis}
    for service in problem.services:
        if not models & set(service.models):
            raise ConfigError(
                f"service {service.name}: nothing serves {', '.join(service.models) or 'no model'}; "
                f"there is {', '.join(sorted(models)) or 'none'}",
                param="services",
            )
    reserved = {(o.place, o.machine): o.limit for o in problem.offers if o.purchase == "reserved"}
    for (place, machine), count in problem.committed.items():
        most = reserved.get((place, machine), 0)
        if most is not None and count > most:
            raise ConfigError(
                f"{count} {machine} at {place} are committed to, and {most} are offered reserved",
                param="committed",
            )
    for bucket in problem.buckets:
        known(f"demand ({bucket.name})", "service", (bucket.service,), services)
        known(f"demand ({bucket.name})", "group", (bucket.group,), groups)


def _numbers(problem: Problem) -> None:
    for p in problem.periods:
        within(f"period {p.name}: hours", p.hours, 1e-6, 1e6)
        within(f"period {p.name}: times", p.times, 1e-6, 1e6)
    for o in problem.offers:
        within(f"{o.name}: hourly_usd", o.hourly_usd, 0, 1e6)
        within(f"{o.name}: availability", o.availability, 0, 1)
        if o.availability != 1 and o.purchase != "spot":
            raise ConfigError(
                f"{o.name}: availability is {o.availability}; only spot machines may be away", param="offers"
            )
        within(f"{o.name}: limit", 0 if o.limit is None else o.limit, 0, 1e6)
        if o.hourly_usd < 1e-6 and o.purchase != "owned":
            raise ConfigError(
                f"{o.name}: hourly_usd is {o.hourly_usd:g}; only owned machines may cost nothing",
                param="offers",
            )
    for a in problem.apis:
        within(f"api {a.name}: input_usd", a.input_usd, 0, 1)
        within(f"api {a.name}: output_usd", a.output_usd, 0, 1)
        if a.input_usd + a.output_usd == 0:
            raise ConfigError(f"api {a.name}: both prices are 0", param="apis")
        for name in ("ttft_s", "tpot_s"):
            within(f"api {a.name}: {name}", getattr(a, name), 0, 1e6)
    for s in problem.services:
        within(f"service {s.name}: ttft_s", s.ttft_s, 1e-6, math.inf)
        within(f"service {s.name}: tpot_s", s.tpot_s, 1e-9, math.inf)
        within(f"service {s.name}: attainment", s.attainment, 1e-6, 1)
    for b in problem.buckets:
        for name in ("prompt_tokens", "output_tokens", "adapters_gib"):
            within(f"demand ({b.name}): {name}", getattr(b, name), 0, 1e9)
        for rate in b.rates:
            within(f"demand ({b.name}): rate", rate, 0, 1e9)
    for scenario in problem.scenarios:
        for factor in scenario.factors:
            within(f"scenario {scenario.name}: factor", factor, 0, 1e6)
    within("bytes_per_token", problem.network.bytes_per_token, 0, 1e6)
    within("strain", problem.rules.strain, 1, 1e3)
    for margin in problem.rules.margin:
        within("margin", margin, 1e-6, 1e3)


def _lengths(problem: Problem) -> None:
    periods, buckets = len(problem.periods), len(problem.buckets)
    if not periods or not buckets:
        raise ConfigError("a plan needs at least one period and one bucket of demand", param="demand")
    for b in problem.buckets:
        length(f"demand ({b.name}): rates", b.rates, periods)
    for f in problem.fits:
        length(f"{f.model} on {f.machine}: load_s", f.load_s, buckets, "buckets")
        length(f"{f.model} on {f.machine}: ttft_s", f.ttft_s, buckets, "buckets")
    for s in problem.scenarios:
        length(f"scenario {s.name}: factors", s.factors, periods)
    if problem.rules.margin:
        length("margin", problem.rules.margin, periods)
    if problem.scenarios and abs(sum(s.probability for s in problem.scenarios) - 1) > 1e-9:
        raise ConfigError("the scenarios' probabilities do not sum to 1", param="scenarios")
