"""Places with their machines, and at what prices those can be had."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner import accelerators, prices
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.document import Way
from stoa.planner.files.units import Exchange, Quantity
from stoa.planner.prices import MachinePrice
from stoa.planner.problem import MachineType, Offer, Place
from stoa.simulator.spot import read_spot

_OFF = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*off\s*")
_PATTERN = set("*?[")


@dataclass(frozen=True, slots=True)
class Sites:
    """`committed`: reserved already, by (place, machine). `notes`: how figures came about, for people."""

    places: tuple[Place, ...]
    machines: tuple[MachineType, ...]
    offers: tuple[Offer, ...]
    committed: Mapping[tuple[str, str], int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Listed:
    """A machine as the document lists it at a place, with what its price file says."""

    at: str  # the key, for messages
    place: doc.Place
    entry: doc.MachineAt
    name: str
    price: MachinePrice | None

    @property
    def buying(self) -> doc.Buying:
        """The machine's own word, else its place's."""
        own, place = self.entry, self.place
        return doc.Buying(
            buy=place.buy if own.buy is None else own.buy,
            reserved=place.reserved if own.reserved is None else own.reserved,
            spot_availability=place.spot_availability
            if own.spot_availability is None
            else own.spot_availability,
            spot_trace=place.spot_trace if own.spot_trace is None else own.spot_trace,
            spot_inverted=place.spot_inverted if own.spot_inverted is None else own.spot_inverted,
        )


def read_sites(document: doc.Document, folder: Path, exchange: Exchange) -> Sites:
    """ConfigError for prices that are missing or cannot be, and for machines that nothing describes."""
    types = {machine.name: _declared(i, machine) for i, machine in enumerate(document.machine)}
    offers: list[Offer] = []
    committed: dict[tuple[str, str], int] = {}
    notes: list[str] = []
    for i, place in enumerate(document.place):
        for listed in _listed(f"place[{i}]", place, folder):
            kind = _type(listed, types)
            types.setdefault(listed.name, kind)
            if place.kind == "owned":
                offers.append(_owned(listed, kind, exchange, notes))
                continue
            found = _bought(listed, folder, exchange, notes)
            offers.extend(found)
            if listed.entry.committed:
                _check_reserved(listed, found)
                committed[place.name, listed.name] = listed.entry.committed
    used = {offer.machine for offer in offers}
    places = tuple(_place(i, place) for i, place in enumerate(document.place))
    machines = tuple(kind for name, kind in types.items() if name in used)
    return Sites(places, machines, tuple(offers), committed, tuple(dict.fromkeys(notes)))


def _place(number: int, place: doc.Place) -> Place:
    at = f"place[{number}]"
    labels = {*place.labels, place.kind, place.provider, place.region or "", place.zone or ""} - {""}
    carbon = None if place.carbon is None else units.grams_per_kwh(place.carbon, f"{at}.carbon")
    return Place(place.name, frozenset(labels), carbon)


# -- machines


def _declared(number: int, machine: doc.Machine) -> MachineType:
    at = f"machine[{number}]"
    known = accelerators.by_name(machine.accelerator)
    if machine.memory is not None:
        each_gib = units.gib(machine.memory, f"{at}.memory")
    else:
        each_gib = accelerators.find(machine.accelerator).memory_gib
    power_kw = None if known is None else known.power_w * machine.accelerators / 1000
    if machine.power is not None:
        power_kw = units.kilowatts(machine.power, f"{at}.power")
    name = machine.accelerator if known is None else known.name
    return MachineType(machine.name, name, machine.accelerators, each_gib * machine.accelerators, power_kw)


def _type(listed: _Listed, types: Mapping[str, MachineType]) -> MachineType:
    if listed.name in types:
        return types[listed.name]
    price = listed.price
    if price is None or price.accelerators < 1 or price.accelerator_memory_gib is None:
        raise ConfigError(
            f"{listed.at}: nothing says which accelerators {listed.name!r} has; accepted: a [[machine]] of that name with "
            "accelerator and accelerators",
            param=listed.at,
        )
    known = accelerators.by_name(price.accelerator)
    power_kw = None if known is None else known.power_w * price.accelerators / 1000
    memory_gib = price.accelerator_memory_gib * price.accelerators
    return MachineType(listed.name, price.accelerator, price.accelerators, memory_gib, power_kw)


def _listed(at: str, place: doc.Place, folder: Path) -> list[_Listed]:
    if place.kind == "owned" and (place.prices or place.buy or place.reserved):
        raise ConfigError(f"{at}: {place.name} is owned; accepted: no prices, buy or reserved", param=at)
    if place.spot_advisor is not None and place.prices is None:
        raise ConfigError(f"{at}.spot_advisor goes with prices", param=f"{at}.spot_advisor")
    found: list[MachinePrice] = []
    if place.prices is not None:
        advisor = None if place.spot_advisor is None else folder / place.spot_advisor
        found = prices.read_machines(
            folder / place.prices, spot_advisor=advisor, provider=place.provider or None, region=place.region
        )
        if not found:
            where = "" if place.region is None else f" in region {place.region!r}"
            raise ConfigError(
                f"{at}: {place.prices} has no machine with accelerators{where}", param=f"{at}.prices"
            )
    return [
        listed
        for j, entry in enumerate(place.machine)
        for listed in _expanded(f"{at}.machine[{j}]", place, entry, found)
    ]


def _expanded(
    at: str, place: doc.Place, entry: doc.MachineAt, found: Sequence[MachinePrice]
) -> list[_Listed]:
    """One, or for a pattern all machines with accelerators that the price file has at the place."""
    if not set(entry.type) & _PATTERN:
        price = prices.machine_at(found, entry.type, place.region, place.zone) if found else None
        return [_Listed(at, place, entry, entry.type, price)]
    names = sorted({p.machine for p in found if p.accelerators and fnmatchcase(p.machine, entry.type)})
    there = [p for p in found if place.region is None or p.region.lower() == place.region.lower()]
    names = [name for name in names if any(p.machine == name for p in there)]
    if not names:
        raise ConfigError(f"{at}.type: no machine of the price file is {entry.type!r}", param=f"{at}.type")
    return [
        _Listed(at, place, entry, name, prices.machine_at(there, name, place.region, place.zone))
        for name in names
    ]


# -- offers


def _owned(listed: _Listed, kind: MachineType, exchange: Exchange, notes: list[str]) -> Offer:
    """Paid for already: an hour costs its power."""
    entry, place, at = listed.entry, listed.place, listed.at
    if entry.count is None:
        raise ConfigError(f"{at}: how many are owned? accepted: count = a whole number", param=f"{at}.count")
    if any(v is not None for v in (entry.on_demand, entry.spot, entry.reserved, entry.buy, entry.limit)):
        raise ConfigError(f"{at}: owned machines are not bought; accepted: count, hourly", param=at)
    if entry.hourly is not None:
        hourly_usd = units.hourly_usd(entry.hourly, f"{at}.hourly", exchange)
    elif place.power_price is not None:
        if kind.power_kw is None:
            raise ConfigError(
                f"{at}: nothing says what power {kind.name} draws; accepted: power in its [[machine]]",
                param=at,
            )
        price = units.kwh_usd(place.power_price, f"{at.rpartition('.')[0]}.power_price", exchange)
        hourly_usd = kind.power_kw * price
        notes.append(
            f"{kind.name} at {place.name}: an hour costs {kind.power_kw:g} kW of power, {hourly_usd:.3f} USD"
        )
    else:
        hourly_usd = 0.0
        notes.append(f"{kind.name} at {place.name}: no price of power is given, so running it costs nothing")
    return Offer(place.name, listed.name, "owned", hourly_usd, entry.count)


def _bought(listed: _Listed, folder: Path, exchange: Exchange, notes: list[str]) -> list[Offer]:
    entry, at = listed.entry, listed.at
    if entry.count is not None or entry.hourly is not None:
        raise ConfigError(
            f"{at}: count and hourly are of owned machines; accepted: limit, on_demand", param=at
        )
    usd = _prices(listed, exchange)
    wanted = listed.buying.buy
    ways = [w for w in doc.WAYS if w in usd] if wanted is None else _ways(listed, wanted, usd)
    if not ways:
        raise ConfigError(
            f"{at}: {listed.name} has no price at {listed.place.name}; {_how(listed)}", param=at
        )
    if listed.price is not None and listed.price.note:
        notes.append(f"{listed.name} at {listed.place.name}: {listed.price.note}")
    offers = []
    for way in ways:
        limit = entry.limit.get(way) if isinstance(entry.limit, dict) else entry.limit
        there = _availability(listed, folder, notes) if way == "spot" else 1.0
        offers.append(Offer(listed.place.name, listed.name, way, usd[way], limit, there))
    return offers


def _ways(listed: _Listed, wanted: Sequence[Way], usd: Mapping[Way, float]) -> list[Way]:
    for way in wanted:
        if way not in usd:
            name = way.replace("_", "-")
            raise ConfigError(
                f"{listed.at}: {listed.name} has no {name} price at {listed.place.name}; {_how(listed)}",
                param=listed.at,
            )
    return [way for way in doc.WAYS if way in wanted]


def _how(listed: _Listed) -> str:
    blank = "the price file says it is not sold so; " if listed.price is not None else ""
    return f'{blank}accepted: on_demand, spot = "2.5 USD/h", reserved = "40 % off"'


def _prices(listed: _Listed, exchange: Exchange) -> dict[Way, float]:
    """USD an hour by way of buying: the document's word before the price file's."""
    price, entry = listed.price, listed.entry
    stated: list[tuple[Way, Quantity | None, float | None]] = [
        ("on_demand", entry.on_demand, None if price is None else price.on_demand_usd),
        ("spot", entry.spot, None if price is None else price.spot_usd),
    ]
    found: dict[Way, float] = {}
    for way, text, filed_usd in stated:
        if text is not None:
            found[way] = _above_zero(listed, way, units.hourly_usd(text, f"{listed.at}.{way}", exchange))
        elif filed_usd is not None:
            found[way] = exchange.usd(filed_usd, "USD", f"{listed.at}: the price file")
    if (reserved := listed.buying.reserved) is not None:
        found["reserved"] = _above_zero(listed, "reserved", _reserved(listed, reserved, found, exchange))
    return found


def _above_zero(listed: _Listed, way: str, usd: float) -> float:
    if usd <= 0:
        raise ConfigError(
            f"{listed.at}.{way}: the price is 0; accepted: a price above 0", param=f"{listed.at}.{way}"
        )
    return usd


def _reserved(listed: _Listed, value: Quantity, found: Mapping[Way, float], exchange: Exchange) -> float:
    match = _OFF.fullmatch(value) if isinstance(value, str) else None
    at = f"{listed.at}.reserved"
    if match is None:
        return units.hourly_usd(value, at, exchange)
    if "on_demand" not in found:
        raise ConfigError(f"{at} is {value!r}, but {listed.name} has no on-demand price", param=at)
    percent = float(match[1])
    if not percent < 100:
        raise ConfigError(f"{at} is {value!r}; accepted: less than 100 % off", param=at)
    return found["on_demand"] * (1 - percent / 100)


def _availability(listed: _Listed, folder: Path, notes: list[str]) -> float:
    where = f"{listed.name} at {listed.place.name} (spot)"
    stated, trace = listed.buying.spot_availability, listed.buying.spot_trace
    if stated is not None:
        return units.share(stated, f"{listed.at}.spot_availability")
    if trace is None:
        notes.append(f"{where}: no statistics of availability are given, so it is taken to be there always")
        return 1.0
    share = read_spot(folder / trace, inverted=bool(listed.buying.spot_inverted)).share_available()
    notes.append(f"{where}: there {share:.1%} of the time, as {trace} has it")
    return share


def _check_reserved(listed: _Listed, found: Sequence[Offer]) -> None:
    if not any(offer.purchase == "reserved" for offer in found):
        raise ConfigError(
            f"{listed.at}.committed: {listed.name} has no reserved price; accepted: reserved beside it",
            param=f"{listed.at}.committed",
        )
