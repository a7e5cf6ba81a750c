"""Places with their machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from stoa.errors import ConfigError
from stoa.planner import accelerators, prices
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.offers import Listed, bought, check_reserved, owned
from stoa.planner.files.units import Exchange
from stoa.planner.prices import MachinePrice
from stoa.planner.problem import MachineType, Offer, Place

_PATTERN = set("*?[")


@dataclass(frozen=True, slots=True)
class Sites:
    """`committed`: reserved already, by (place, machine). `notes`: how figures came about, for people."""

    places: tuple[Place, ...]
    machines: tuple[MachineType, ...]
    offers: tuple[Offer, ...]
    committed: Mapping[tuple[str, str], int]
    notes: tuple[str, ...]


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
                offers.append(owned(listed, kind, exchange, notes))
                continue
            found = bought(listed, folder, exchange, notes)
            offers.extend(found)
            if listed.entry.committed:
                check_reserved(listed, found)
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
    elif known is not None:
        each_gib = known.memory_gib
    else:
        raise ConfigError(
            f"{at}: {accelerators.unknown(machine.accelerator)}; accepted: memory beside it, and bandwidth and compute or a "
            "[[throughput]] with profile or table",
            param=f"{at}.accelerator",
        )
    power_kw = None if known is None else known.power_w * machine.accelerators / 1000
    if machine.power is not None:
        power_kw = units.kilowatts(machine.power, f"{at}.power")
    name = machine.accelerator if known is None else known.name
    return MachineType(machine.name, name, machine.accelerators, each_gib * machine.accelerators, power_kw)


def _type(listed: Listed, types: Mapping[str, MachineType]) -> MachineType:
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


def _listed(at: str, place: doc.Place, folder: Path) -> list[Listed]:
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


def _expanded(at: str, place: doc.Place, entry: doc.MachineAt, found: Sequence[MachinePrice]) -> list[Listed]:
    """One, or for a pattern all machines with accelerators that the price file has at the place."""
    if not set(entry.type) & _PATTERN:
        price = prices.machine_at(found, entry.type, place.region, place.zone) if found else None
        return [Listed(at, place, entry, entry.type, price)]
    names = sorted({p.machine for p in found if p.accelerators and fnmatchcase(p.machine, entry.type)})
    there = [p for p in found if place.region is None or p.region.lower() == place.region.lower()]
    names = [name for name in names if any(p.machine == name for p in there)]
    if not names:
        raise ConfigError(f"{at}.type: no machine of the price file is {entry.type!r}", param=f"{at}.type")
    return [
        Listed(at, place, entry, name, prices.machine_at(there, name, place.region, place.zone))
        for name in names
    ]
