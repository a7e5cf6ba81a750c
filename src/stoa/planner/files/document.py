"""The plan's document, `plan.toml` or `plan.yaml`: what may stand in it. docs/planner-input.md says what each key means.

Quantities are text with a unit (`units`), file names are relative to the document. Names of projects and machines may be
patterns (`*`, `?`, `[…]`) where it says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from stoa.planner.files.units import Quantity

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Way = Literal["on_demand", "spot", "reserved"]  # how machines can be bought
WAYS: tuple[Way, ...] = ("on_demand", "spot", "reserved")
Share = str | float | int
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive = Annotated[float, Meta(gt=0)]
AtLeastOne = Annotated[float, Meta(ge=1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the document."""


class Span(Entry, frozen=True, kw_only=True):
    """Hours of some days that count as one period. `hours`: "8-20", or several of them, local clock hours."""

    name: str
    hours: tuple[str, ...] = ("0-24",)
    days: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Periods(Entry, frozen=True, kw_only=True):
    """`kind`: "flat" one period, "day" the hours of a typical day, "week" those of a weekday and of a day of the weekend,
    "spans" the periods of `span`."""

    kind: Literal["flat", "day", "week", "spans"] = "day"
    step: Literal[1, 2, 3, 4, 6, 8, 12, 24] = 1
    horizon: Quantity = "30 d"
    span: tuple[Span, ...] = ()


class Machine(Entry, frozen=True, kw_only=True):
    """A type of machine, where price files do not describe it. `bandwidth` and `compute`: of one accelerator, where its
    datasheet is not known here."""

    name: str
    accelerator: str
    accelerators: Annotated[int, Meta(ge=1, le=1024)] = 1
    memory: Quantity | None = None
    bandwidth: Quantity | None = None
    compute: Quantity | None = None
    power: Quantity | None = None


class Buying(Entry, frozen=True, kw_only=True):
    """How machines are bought, at a place or of a type there; what a type does not say is as its place says."""

    buy: tuple[Way, ...] | None = None
    reserved: Quantity | None = None
    spot_availability: Share | None = None
    spot_trace: str | None = None
    spot_inverted: bool | None = None


class MachineAt(Buying, frozen=True, kw_only=True):
    type: str
    count: Count | None = None
    hourly: Quantity | None = None
    on_demand: Quantity | None = None
    spot: Quantity | None = None
    limit: Count | dict[Way, Count] | None = None
    committed: Count = 0


class Place(Buying, frozen=True, kw_only=True):
    name: str
    kind: Literal["owned", "cloud"]
    labels: tuple[str, ...] = ()
    provider: str = ""
    region: str | None = None
    zone: str | None = None
    prices: str | None = None
    spot_advisor: str | None = None
    power_price: Quantity | None = None
    carbon: Quantity | None = None
    machine: tuple[MachineAt, ...] = ()


class Model(Entry, frozen=True, kw_only=True):
    """`shape`: the name of a well-known model, or a config.json. `adapter`: what one adapter takes in memory. `source`: what
    exported manifests start."""

    name: str
    source: str | None = None
    shape: str | None = None
    weights: Quantity | None = None
    adapter: Quantity | None = None


class Throughput(Entry, frozen=True, kw_only=True):
    """What a replica of a model does on machines of these types (patterns): one of `profile`, `table` and `roofline`."""

    model: str
    machines: tuple[str, ...] | None = None
    profile: str | None = None
    table: str | None = None
    select: dict[str, str | int | float] = {}
    roofline: bool = False
    max_num_seqs: Annotated[int, Meta(ge=1)] | None = None
    max_batch_tokens: Annotated[int, Meta(ge=1)] | None = None
    adapters: Quantity | None = None


class Match(Entry, frozen=True, kw_only=True):
    """Which requests: those that fit each list that is given (patterns)."""

    projects: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class Service(Entry, frozen=True, kw_only=True):
    name: str
    models: tuple[str, ...]
    ttft: Quantity
    tpot: Quantity | None = None
    attainment: Share = 0.99
    survives: bool = True
    match: Match = Match()
    adapters: Count = 0


class Rule(Entry, frozen=True, kw_only=True):
    """Where requests of some projects (patterns) may be computed: places by name or label."""

    name: str
    projects: tuple[str, ...]
    only: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()


class Api(Entry, frozen=True, kw_only=True):
    name: str
    model: str
    ttft: Quantity
    tpot: Quantity
    prices: str | None = None
    price: str | None = None
    input: Quantity | None = None
    output: Quantity | None = None
    place: str | None = None
    labels: tuple[str, ...] = ()
    requests: Quantity | None = None
    tokens: Quantity | None = None


class Origin(Entry, frozen=True, kw_only=True):
    """Where requests of some projects (patterns) come from."""

    name: str
    projects: tuple[str, ...] = ("*",)


class Link(Entry, frozen=True, kw_only=True, rename={"origin": "from", "place": "to"}):
    """From an origin to places, by name or label."""

    origin: str
    place: str
    latency: Quantity | None = None
    traffic: Quantity | None = None


class Network(Entry, frozen=True, kw_only=True):
    bytes_per_token: Positive = 200.0
    link: tuple[Link, ...] = ()


class Rules(Entry, frozen=True, kw_only=True):
    survive_place: bool = False
    survive_spot: bool = False
    strain: AtLeastOne = 1.0
    ramp: Annotated[int, Meta(ge=1)] | None = None
    budget: Quantity | None = None
    carbon: Quantity | None = None


class ScenarioEntry(Entry, frozen=True, kw_only=True):
    """`factor`: of all demand; `factors`: by name of period, for those that differ."""

    name: str
    probability: Share
    factor: Annotated[float, Meta(ge=0)] = 1.0
    factors: dict[str, Annotated[float, Meta(ge=0)]] = {}


class Safety(Entry, frozen=True, kw_only=True):
    """`within`: share of requests that come in a `window` with no more work than is planned for; `margin`: that factor, or
    by name of period; `days`: quantile of the days of a period."""

    within: Share = 0.9
    margin: AtLeastOne | dict[str, AtLeastOne] | None = None
    window: Quantity = "10 s"
    days: Share | None = None
    scenario: tuple[ScenarioEntry, ...] = ()


class Demand(Entry, frozen=True, kw_only=True, rename={"begin": "from"}):
    """One of `trace`, `usage` and `table`."""

    trace: str | None = None
    usage: str | None = None
    table: str | None = None
    start: str | None = None
    time_zone: str = "UTC"
    begin: Quantity | None = None
    until: Quantity | None = None
    scale: Positive = 1.0
    sort: bool = False
    prompt_edges: tuple[Positive, ...] = (128, 512, 2048, 8192)
    output_edges: tuple[Positive, ...] = (32, 128, 512)


class Document(Entry, frozen=True, kw_only=True):
    currency: str = "USD"
    time_zone: str = "UTC"
    exchange: dict[str, Positive] = {}
    periods: Periods = Periods()
    machine: tuple[Machine, ...] = ()
    place: tuple[Place, ...] = ()
    model: tuple[Model, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    service: tuple[Service, ...]
    rule: tuple[Rule, ...] = ()
    api: tuple[Api, ...] = ()
    origin: tuple[Origin, ...] = ()
    network: Network = Network()
    rules: Rules = Rules()
    safety: Safety = Safety()
    demand: Demand
