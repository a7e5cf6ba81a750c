"""A document and the files it names, put together into a `Problem`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from stoa.errors import ConfigError
from stoa.planner.check import check
from stoa.planner.eligible import allow_late
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.apis import read_apis
from stoa.planner.files.arrivals import Arrivals, read_trace, read_usage
from stoa.planner.files.asking import kinds, read_services, unheard
from stoa.planner.files.clock import Clock, Start, assumed_start, read_clock, read_start, read_zone
from stoa.planner.files.decode import read_document
from stoa.planner.files.demand import Bucketed, Sizes, bucketed
from stoa.planner.files.network import read_network
from stoa.planner.files.residency import Residency, read_residency
from stoa.planner.files.safety import read_margin, read_scenarios, work_of
from stoa.planner.files.sites import read_sites
from stoa.planner.files.table import read_projects, read_table
from stoa.planner.files.throughput import fits_of, read_replicas
from stoa.planner.files.units import Exchange
from stoa.planner.problem import Bucket, Period, Place, Problem, Rules


@dataclass(frozen=True, slots=True)
class Inputs:
    """`notes`: what was assumed, and how figures came about, for people; `warnings`: what may be meant otherwise.
    `demand`: the requests themselves, where they are known. `trace`: the file they came from. `document`: as it was read."""

    problem: Problem
    document: doc.Document
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    demand: Bucketed | None = None
    trace: Path | None = None


def read_problem(path: Path) -> Problem:
    """What a `plan.toml` or `plan.yaml` and the files it names ask for. ConfigError and InvalidTrace say what is wrong, in
    which file, at which key or line."""
    return read_inputs(path).problem


def read_inputs(path: Path, *, usage: Path | None = None) -> Inputs:
    """As `read_problem`, with what there is to say about it. `usage`: an export of usage that the demand is taken from,
    whatever the document names."""
    document = read_document(path)
    try:
        _check_names(document)
        return _read(document, path.parent, usage)
    except ConfigError as error:
        raise _located(error, path, document) from None


def _check_names(document: doc.Document) -> None:
    """ConfigError for a name that stands twice: the later entry would take the earlier one's place."""
    for key in ("place", "machine", "model", "api", "service", "origin"):
        names: list[str] = [entry.name for entry in getattr(document, key)]
        for i, name in enumerate(names):
            if not name.strip():
                raise ConfigError(f"{key}[{i}] has no name", param=f"{key}[{i}].name")
            if name in names[:i]:
                raise ConfigError(
                    f"{key}[{i}]: {name!r} stands twice, first as {key}[{names.index(name)}]",
                    param=f"{key}[{i}].name",
                )


def _located(error: ConfigError, path: Path, document: doc.Document) -> ConfigError:
    """With the file's name, unless it is another file's fault, and those of the entries it speaks of."""
    if Path(re.split("[:,] ", error.message)[0]).is_file():
        return error
    names: list[str] = []
    entry: Any = document
    for key, number in re.findall(r"(\w+)\[(\d+)\]", error.param or ""):
        entries = getattr(entry, key, None) or ()
        if int(number) >= len(entries):
            break
        entry = entries[int(number)]
        names.append(getattr(entry, "name", "") or getattr(entry, "type", ""))
    where = f" ({', '.join(filter(None, names))})" if any(names) else ""
    return ConfigError(f"{path}{where}: {error.message}", param=error.param)


def _read(document: doc.Document, folder: Path, usage: Path | None) -> Inputs:
    if usage is not None:
        demand = structs.replace(document.demand, trace=None, table=None, usage=str(usage.resolve()))
        document = structs.replace(document, demand=demand)
    exchange = read_exchange(document)
    clock = read_clock(document.periods, document.time_zone)
    services = read_services(document.service)
    sites = read_sites(document, folder, exchange)
    apis, places = read_apis(document.api, sites.places, folder, exchange)
    asked = _read_demand(document, folder, clock, places)
    buckets = _buckets(document, asked.sizes, asked.rates)
    replicas, left_out = read_replicas(document, sites.machines, folder)
    network, known = read_network(document, places, exchange), {s.name: s for s in services}
    problem = Problem(
        clock.periods,
        places,
        sites.machines,
        sites.offers,
        fits_of(replicas, buckets, known, network),
        services,
        asked.residency.groups,
        buckets,
        apis,
        network,
        committed=sites.committed,
    )
    buckets, late = allow_late(problem)
    if late:
        problem = replace(problem, buckets=buckets, fits=fits_of(replicas, buckets, known, network))
    sizes = np.array([(b.prompt_tokens, b.output_tokens) for b in buckets], np.float64).reshape(-1, 2)
    work = work_of(problem.fits, sizes[:, 0], sizes[:, 1])
    margin = read_margin(document, asked.bucketed, work, clock.periods, buckets, services)
    warnings = asked.warnings
    if asked.bucketed is None and document.safety.margin is None:
        warnings += (
            "the demand is a table, which says nothing of bursts: there is room for requests that come independently of "
            "each other; real ones are more uneven (safety.margin, or a trace as demand)",
        )
    problem = replace(
        problem,
        rules=_rules(document.rules, margin, exchange),
        scenarios=read_scenarios(document.safety, asked.bucketed, work, clock.periods),
    )
    notes = (*asked.notes, *sites.notes, *left_out, *late)
    return Inputs(check(problem), document, notes, warnings, asked.bucketed, asked.trace)


def read_exchange(document: doc.Document) -> Exchange:
    """ConfigError for names that are no currency's, and for a dollar that is not worth a dollar."""
    for at, code in [("currency", document.currency), *(("exchange", code) for code in document.exchange)]:
        if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
            raise ConfigError(
                f"{at}: {code!r} is no currency; accepted: three capitals such as USD, EUR", param=at
            )
    if document.exchange.get("USD", 1.0) != 1.0:
        raise ConfigError("exchange.USD: accepted: 1, or nothing", param="exchange.USD")
    exchange = Exchange(document.currency, document.exchange)
    exchange.usd(1.0, None)
    return exchange


def _rules(rules: doc.Rules, margin: tuple[float, ...], exchange: Exchange) -> Rules:
    return Rules(
        rules.survive_place,
        rules.survive_spot,
        rules.strain,
        margin,
        rules.ramp,
        None if rules.budget is None else units.usd(rules.budget, "rules.budget", exchange),
        None if rules.carbon is None else units.kilograms(rules.carbon, "rules.carbon"),
    )


# -- demand


@dataclass(frozen=True, slots=True)
class _Asked:
    sizes: tuple[Sizes, ...]
    rates: tuple[tuple[float, ...], ...]
    residency: Residency
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bucketed: Bucketed | None = None
    trace: Path | None = None


def _read_demand(document: doc.Document, folder: Path, clock: Clock, places: Sequence[Place]) -> _Asked:
    demand = document.demand
    given = [name for name in ("trace", "usage", "table") if getattr(demand, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"demand names {' and '.join(given) or 'no file'}; accepted: one of trace, usage, table",
            param="demand",
        )
    if demand.table is not None:
        return _from_table(document, folder / demand.table, clock.periods, places)
    zone = read_zone(demand.time_zone, "demand.time_zone")
    if demand.usage is not None:
        path = folder / demand.usage
        arrivals = read_usage(path)
    else:
        assert demand.trace is not None
        path = folder / demand.trace
        arrivals = read_trace(path, zone, sort=demand.sort)
    return _from_arrivals(document, path, arrivals, clock, places)


def _from_table(
    document: doc.Document, path: Path, periods: Sequence[Period], places: Sequence[Place]
) -> _Asked:
    projects = read_projects(path)
    residency = read_residency(document.rule, projects, places)
    sizes = tuple(read_table(path, periods, kinds(document, residency)))
    return _Asked(sizes, tuple(size.counts for size in sizes), residency, (), unheard(document, projects))


def _from_arrivals(
    document: doc.Document, path: Path, arrivals: Arrivals, clock: Clock, places: Sequence[Place]
) -> _Asked:
    demand = document.demand
    residency = read_residency(document.rule, arrivals.project.names, places)
    start = _start(demand, arrivals, clock)
    begin_s = 0.0 if demand.begin is None else units.seconds(demand.begin, "demand.from")
    end_s = _end_s(arrivals) if demand.until is None else units.seconds(demand.until, "demand.until")
    prompt_edges = _edges(demand.prompt_edges, "demand.prompt_edges")
    output_edges = _edges(demand.output_edges, "demand.output_edges")
    kind_of = kinds(document, residency)
    found = bucketed(arrivals, clock, start, kind_of, prompt_edges, output_edges, begin_s, end_s)
    notes = (
        ()
        if not start.assumed
        else (f"{path.name} has no dates: its second 0 is taken for a Monday's midnight",)
    )
    rates = tuple(found.rates(k) for k in range(len(found.sizes)))
    warnings = unheard(document, arrivals.project.names)
    return _Asked(found.sizes, rates, residency, notes, warnings, found, path)


def _start(demand: doc.Demand, arrivals: Arrivals, clock: Clock) -> Start:
    if demand.start is None:
        return arrivals.start or assumed_start(clock)
    if arrivals.start is not None:
        raise ConfigError("demand.start: the file has dates of its own", param="demand.start")
    return read_start(demand.start, read_zone(demand.time_zone, "demand.time_zone"))


def _end_s(arrivals: Arrivals) -> float:
    """The last request is inside."""
    return float(np.nextafter(arrivals.arrival_s[-1], np.inf)) if len(arrivals) else 0.0


def _edges(edges: Sequence[float], at: str) -> Sequence[float]:
    if any(b <= a for a, b in pairwise(edges)):
        raise ConfigError(
            f"{at} is {list(edges)}; accepted: numbers of tokens, each above the one before", param=at
        )
    return edges


def _buckets(
    document: doc.Document, sizes: Sequence[Sizes], rates: Sequence[tuple[float, ...]]
) -> tuple[Bucket, ...]:
    """Adapters are those that the demand names, else as many as the service says; both spread over the buckets of a kind."""
    adapter_gib = _adapter_gib(document)
    total: dict[object, float] = {}
    for size in sizes:
        total[size.kind] = total.get(size.kind, 0.0) + sum(size.counts)
    stated = {s.name: s.adapters for s in document.service}
    found = []
    for size, rate in zip(sizes, rates, strict=True):
        part = sum(size.counts) / total[size.kind] if total[size.kind] else 0.0
        adapters = size.adapters or stated[size.kind.service] * part
        found.append(
            Bucket(
                size.kind.service,
                size.kind.group,
                size.prompt_tokens,
                size.output_tokens,
                tuple(r * document.demand.scale for r in rate),
                size.kind.origin,
                adapters * adapter_gib[size.kind.service],
            )
        )
    return tuple(found)


def _adapter_gib(document: doc.Document) -> Mapping[str, float]:
    """By service: of an adapter of the model it wants, the first of its list."""
    each = {
        model.name: units.gib(model.adapter, f"model[{i}].adapter")
        for i, model in enumerate(document.model)
        if model.adapter is not None
    }
    return {s.name: each.get(s.models[0], 0.0) for s in document.service}
