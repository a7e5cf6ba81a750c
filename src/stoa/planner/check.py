"""A problem's numbers, names and lengths, before anybody reckons with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from stoa.errors import ConfigError
from stoa.planner.problem import Problem


def check(problem: Problem) -> Problem:
    """ConfigError for names that do not exist or stand twice, and for numbers that cannot be."""
    _names(problem)
    _numbers(problem)
    _lengths(problem)
    return problem


def _names(problem: Problem) -> None:
    places = _unique("place", (p.name for p in problem.places))
    machines = _unique("machine", (m.name for m in problem.machines))
    services = _unique("service", (s.name for s in problem.services))
    groups = _unique("group", (g.name for g in problem.groups))
    _unique("api", (a.name for a in problem.apis))
    _unique("period", (p.name for p in problem.periods))
    _unique("offer", (o.name for o in problem.offers))
    _unique("fit", (" ".join((f.model, f.machine, f.pace)) for f in problem.fits))
    for offer in problem.offers:
        _known("place", offer.place, places, offer.name)
        _known("machine", offer.machine, machines, offer.name)
    for fit in problem.fits:
        _known("machine", fit.machine, machines, f"the throughput of {fit.model}")
    for api in problem.apis:
        _known("place", api.place, places, f"api {api.name}")
    for group in problem.groups:
        for place in group.places:
            _known("place", place, places, f"group {group.name}")
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
        _known("service", bucket.service, services, f"demand ({bucket.name})")
        _known("group", bucket.group, groups, f"demand ({bucket.name})")


def _unique(what: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{what} {name!r} stands twice", param=f"{what}s")
        seen.add(name)
    return seen


def _known(what: str, name: str, known: set[str], where: str) -> None:
    if name not in known:
        accepted = ", ".join(sorted(known)) or "none is given"
        raise ConfigError(f"{where} names the {what} {name!r}; there is {accepted}", param=f"{what}s")


def _numbers(problem: Problem) -> None:
    for p in problem.periods:
        _within(f"period {p.name}: hours", p.hours, 1e-6, 1e6)
        _within(f"period {p.name}: times", p.times, 1e-6, 1e6)
    for o in problem.offers:
        _within(f"{o.name}: hourly_usd", o.hourly_usd, 0, 1e6)
        _within(f"{o.name}: availability", o.availability, 0, 1)
        if o.availability != 1 and o.purchase != "spot":
            raise ConfigError(
                f"{o.name}: availability is {o.availability}; only spot machines may be away", param="offers"
            )
        _within(f"{o.name}: limit", 0 if o.limit is None else o.limit, 0, 1e6)
        if o.hourly_usd == 0 and o.purchase != "owned":
            raise ConfigError(
                f"{o.name}: hourly_usd is 0; only owned machines may cost nothing", param="offers"
            )
    for a in problem.apis:
        _within(f"api {a.name}: input_usd", a.input_usd, 0, 1)
        _within(f"api {a.name}: output_usd", a.output_usd, 0, 1)
        if a.input_usd + a.output_usd == 0:
            raise ConfigError(f"api {a.name}: both prices are 0", param="apis")
        for name in ("ttft_s", "tpot_s"):
            _within(f"api {a.name}: {name}", getattr(a, name), 0, 1e6)
    for s in problem.services:
        _within(f"service {s.name}: ttft_s", s.ttft_s, 1e-6, math.inf)
        _within(f"service {s.name}: tpot_s", s.tpot_s, 1e-9, math.inf)
        _within(f"service {s.name}: attainment", s.attainment, 1e-6, 1)
    for b in problem.buckets:
        for name in ("prompt_tokens", "output_tokens", "adapters_gib"):
            _within(f"demand ({b.name}): {name}", getattr(b, name), 0, 1e9)
        for rate in b.rates:
            _within(f"demand ({b.name}): rate", rate, 0, 1e9)
    _within("strain", problem.rules.strain, 1, 1e3)
    for margin in problem.rules.margin:
        _within("margin", margin, 1e-6, 1e3)


def _within(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN too
        raise ConfigError(f"{what} is {value}; accepted: {least:g} to {most:g}", param=what)


def _lengths(problem: Problem) -> None:
    periods, buckets = len(problem.periods), len(problem.buckets)
    if not periods or not buckets:
        raise ConfigError("a plan needs at least one period and one bucket of demand", param="demand")
    for b in problem.buckets:
        _length(f"demand ({b.name}): rates", b.rates, periods)
    for f in problem.fits:
        _length(f"{f.model} on {f.machine}: load_s", f.load_s, buckets)
        _length(f"{f.model} on {f.machine}: ttft_s", f.ttft_s, buckets)
    for s in problem.scenarios:
        _length(f"scenario {s.name}: factors", s.factors, periods)
    if problem.rules.margin:
        _length("margin", problem.rules.margin, periods)
    if problem.scenarios and abs(sum(s.probability for s in problem.scenarios) - 1) > 1e-9:
        raise ConfigError("the scenarios' probabilities do not sum to 1", param="scenarios")


def _length(what: str, values: Sequence[float], wanted: int) -> None:
    if len(values) != wanted:
        raise ConfigError(f"{what} has {len(values)} entries instead of {wanted}", param=what)
