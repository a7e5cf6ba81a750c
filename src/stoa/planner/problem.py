"""What is to be planned: which demand, which machines could serve it, at which prices, under which rules.

Plain facts, complete and consistent (`check.py`), without file formats and without a solver. Money is USD, time seconds,
memory GiB; whatever else a file says is converted before. Entries of tuples "by bucket" and "by period" stand in the
order of `Problem.buckets` and `Problem.periods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from stoa.fleet.policies.profile import Profile

Purchase = Literal["owned", "reserved", "on_demand", "spot"]
Source = Literal["measured", "table", "roofline", "given"]
USUAL = "as forecast"  # the only scenario, where none are given
_T = TypeVar("_T")
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

    def way_s(self, origin: str, place: str) -> float:
        return self.latency_s.get((origin, place), 0.0)


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
    def hours(self) -> tuple[float, ...]:
        """By period, in the whole horizon."""
        return tuple(p.hours * p.times for p in self.periods)

    @property
    def horizon_h(self) -> float:
        return sum(self.hours)

    @property
    def likely(self) -> tuple[Scenario, ...]:
        """The scenarios, or the one in which all is as forecast."""
        return self.scenarios or (Scenario(USUAL, 1.0, (1.0,) * len(self.periods)),)

    def margin(self, period: int) -> float:
        return self.rules.margin[period] if self.rules.margin else 1.0

    def offer(self, place: str, machine: str, purchase: Purchase) -> Offer:
        """KeyError if there is none."""
        return _only(o for o in self.offers if (o.place, o.machine, o.purchase) == (place, machine, purchase))

    def fit(self, machine: str, model: str, pace: str) -> Fit:
        return _only(f for f in self.fits if (f.machine, f.model, f.pace) == (machine, model, pace))

    def api(self, name: str) -> Api:
        return _only(a for a in self.apis if a.name == name)


def _only(found: Iterable[_T]) -> _T:
    for each in found:
        return each
    raise KeyError("it is not in this problem")
