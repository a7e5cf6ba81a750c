"""What is to be planned: which demand, which machines could serve it, at which prices, under which rules.

Plain facts, complete and consistent (`check`), without file formats and without a solver. Money is USD, time seconds,
memory GiB; whatever else a file says is converted before. Entries of tuples "by bucket" and "by period" stand in the
order of `Problem.buckets` and `Problem.periods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile

Purchase = Literal["owned", "reserved", "on_demand", "spot"]
Source = Literal["measured", "table", "roofline", "given"]
PURCHASES: tuple[Purchase, ...] = ("owned", "reserved", "on_demand", "spot")


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time with constant machine counts. It comes `times` times in all, as each weekday's ninth hour."""

    name: str
    hours: float
    times: float = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where machines stand, or an API answers. It fails as a whole; rules of residency name it or one of its labels."""

    name: str
    labels: frozenset[str] = frozenset()  # "owned", "eu", a provider's name ...
    carbon_g_per_kwh: float | None = None


@dataclass(frozen=True, slots=True)
class MachineType:
    name: str
    accelerator: str
    accelerators: int
    memory_gib: float  # of all its accelerators
    power_kw: float | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """Machines of a type at a place. `hourly_usd`: of each hour a machine is kept; reserved ones are kept over the whole
    horizon, owned ones are paid for already, so theirs is what running them costs (power)."""

    place: str
    machine: str
    purchase: Purchase
    hourly_usd: float
    limit: int | None = None  # machines at most; None: any number
    availability: float = 1.0  # share of the time a machine that was asked for is there, and paid
    why: str = ""  # where the price is from, for people

    @property
    def name(self) -> str:
        return f"{self.machine} at {self.place} ({self.purchase.replace('_', '-')})"


@dataclass(frozen=True, slots=True)
class Fit:
    """One replica: a model on a machine. `load_s` by bucket: seconds of a replica that one request takes when the replica
    is as full as the bucket's targets allow, infinite where it cannot keep them (1 / load_s is Mélange's MaxTput).
    `ttft_s` by bucket: time to the first token of a request that does not wait."""

    machine: str
    model: str
    load_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    source: Source = "given"
    adapters_gib: float = math.inf  # memory that a replica has for adapters
    profile: Profile | None = None
    why: str = ""  # what the source is, for people
    pace: str = ""  # the service whose targets it keeps, where a replica may be run at several; stricter ones have no load


@dataclass(frozen=True, slots=True)
class Tier:
    """USD a token of requests whose prompt is longer than so many tokens."""

    above_tokens: float
    input_usd: float
    output_usd: float


@dataclass(frozen=True, slots=True)
class Api:
    """A hosted model, paid by the token; at most so many requests and tokens a second."""

    name: str
    place: str
    model: str
    input_usd: float  # a token
    output_usd: float
    ttft_s: float
    tpot_s: float
    requests_per_s: float = math.inf
    tokens_per_s: float = math.inf
    max_prompt_tokens: float = math.inf
    tiers: tuple[Tier, ...] = ()  # by rising `above_tokens`

    def request_usd(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a request of this size costs."""
        price: Api | Tier = self
        for tier in self.tiers:
            if prompt_tokens > tier.above_tokens:
                price = tier
        return price.input_usd * prompt_tokens + price.output_usd * output_tokens


@dataclass(frozen=True, slots=True)
class Service:
    """A class of requests and what was promised to it. `models`: those that may answer, the wanted one first."""

    name: str
    models: tuple[str, ...]
    ttft_s: float
    tpot_s: float = math.inf
    attainment: float = 0.99  # share of requests that must keep the targets
    survives: bool = True  # is still served after the loss of a place or of spot machines


@dataclass(frozen=True, slots=True)
class Group:
    """Projects under the same rules. `places`: where their requests may be computed."""

    name: str
    places: frozenset[str]
    projects: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()  # as the user wrote them


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of about one size, of one service and group. `rates` by period, requests a second (the mean)."""

    service: str
    group: str
    prompt_tokens: float
    output_tokens: float
    rates: tuple[float, ...]
    origin: str = ""  # where they come from, for `Network`
    adapters_gib: float = 0.0  # of their adapters, resident wherever they are served
    late: bool = False  # may come late: the service keeps its promise without them

    @property
    def name(self) -> str:
        return f"{self.service}, {self.group}, {self.prompt_tokens:.0f} + {self.output_tokens:.0f} tokens"


@dataclass(frozen=True, slots=True)
class Network:
    """Between an origin of requests and a place: round trip, and what a GiB of traffic costs. Missing pairs: 0."""

    latency_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    usd_per_gib: Mapping[tuple[str, str], float] = field(default_factory=dict)
    bytes_per_token: float = 200.0  # a streamed token with its envelope; a prompt's tokens count 4 bytes


@dataclass(frozen=True, slots=True)
class Scenario:
    """Demand as it may be: rates of all buckets times `factors` (by period). Probabilities of all sum to 1."""

    name: str
    probability: float
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Promises about the whole. `margin` by period: machines are bought for so many times the mean rate, for what
    happens within a period. After a loss, machines may be loaded by `strain` times what they usually are."""

    survive_place: bool = False
    survive_spot: bool = False  # the loss of all spot machines of any one place
    strain: float = 1.0
    margin: tuple[float, ...] = ()  # empty: 1
    ramp: int | None = None  # machines of a kind that may come or go between one period and the next
    budget_usd: float | None = None  # of the whole horizon
    carbon_kg: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """`periods` follow each other, and the first comes after the last."""

    periods: tuple[Period, ...]
    places: tuple[Place, ...]
    machines: tuple[MachineType, ...]
    offers: tuple[Offer, ...]
    fits: tuple[Fit, ...]
    services: tuple[Service, ...]
    groups: tuple[Group, ...]
    buckets: tuple[Bucket, ...]
    apis: tuple[Api, ...] = ()
    network: Network = Network()
    rules: Rules = Rules()
    scenarios: tuple[Scenario, ...] = ()  # none: the rates as they are
    committed: Mapping[tuple[str, str], int] = field(
        default_factory=dict
    )  # reserved already: (place, machine)

    @property
    def horizon_h(self) -> float:
        return sum(p.hours * p.times for p in self.periods)

    def margin(self, period: int) -> float:
        return self.rules.margin[period] if self.rules.margin else 1.0


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
