"""At what prices machines can be had, and where those are from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stoa.errors import ConfigError
from stoa.planner.files import document as doc
from stoa.planner.files import units
from stoa.planner.files.document import Way
from stoa.planner.files.units import Exchange, Quantity
from stoa.planner.prices import MachinePrice
from stoa.planner.problem import MachineType, Offer
from stoa.simulator.spot import read_spot

_OFF = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*off\s*")
_STATED = "as stated"


class _Price(NamedTuple):
    usd: float  # an hour
    why: str


@dataclass(frozen=True, slots=True)
class Listed:
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


def owned(listed: Listed, kind: MachineType, exchange: Exchange, notes: list[str]) -> Offer:
    """Paid for already: an hour costs its power."""
    entry, place, at = listed.entry, listed.place, listed.at
    if entry.count is None:
        raise ConfigError(f"{at}: how many are owned? accepted: count = a whole number", param=f"{at}.count")
    if any(v is not None for v in (entry.on_demand, entry.spot, entry.reserved, entry.buy, entry.limit)):
        raise ConfigError(f"{at}: owned machines are not bought; accepted: count, hourly", param=at)
    if entry.hourly is not None:
        hourly_usd, why = units.hourly_usd(entry.hourly, f"{at}.hourly", exchange), _STATED
    elif place.power_price is not None:
        if kind.power_kw is None:
            raise ConfigError(
                f"{at}: nothing says what power {kind.name} draws; accepted: power in its [[machine]]",
                param=at,
            )
        price = units.kwh_usd(place.power_price, f"{at.rpartition('.')[0]}.power_price", exchange)
        hourly_usd, why = kind.power_kw * price, f"{kind.power_kw:g} kW of power at {price:.3g} USD a kWh"
    else:
        hourly_usd, why = 0.0, "no price of power is given"
        notes.append(f"{kind.name} at {place.name}: {why}, so running it costs nothing")
    return Offer(place.name, listed.name, "owned", hourly_usd, entry.count, why=why)


def bought(listed: Listed, folder: Path, exchange: Exchange, notes: list[str]) -> list[Offer]:
    entry, at = listed.entry, listed.at
    if entry.count is not None or entry.hourly is not None:
        raise ConfigError(
            f"{at}: count and hourly are of owned machines; accepted: limit, on_demand", param=at
        )
    found = _prices(listed, exchange)
    wanted = listed.buying.buy
    ways = [w for w in doc.WAYS if w in found] if wanted is None else _ways(listed, wanted, found)
    if not ways:
        raise ConfigError(
            f"{at}: {listed.name} has no price at {listed.place.name}; {_how(listed)}", param=at
        )
    notes.extend(f"{listed.name} at {listed.place.name}: {note}" for note in _reckoned(listed.price))
    offers = []
    for way in ways:
        limit = entry.limit.get(way) if isinstance(entry.limit, dict) else entry.limit
        there = _availability(listed, folder, notes) if way == "spot" else 1.0
        usd, why = found[way]
        offers.append(Offer(listed.place.name, listed.name, way, usd, limit, there, why))
    return offers


def _reckoned(price: MachinePrice | None) -> list[str]:
    """What the price file does not say itself."""
    if price is None:
        return []
    return [note for note in (price.note, price.spot_note and f"spot price: {price.spot_note}") if note]


def _ways(listed: Listed, wanted: Sequence[Way], found: Mapping[Way, _Price]) -> list[Way]:
    for way in wanted:
        if way not in found:
            name = way.replace("_", "-")
            raise ConfigError(
                f"{listed.at}: {listed.name} has no {name} price at {listed.place.name}; {_how(listed)}",
                param=listed.at,
            )
    return [way for way in doc.WAYS if way in wanted]


def _how(listed: Listed) -> str:
    blank = "the price file says it is not sold so; " if listed.price is not None else ""
    return f'{blank}accepted: on_demand, spot = "2.5 USD/h", reserved = "40 % off"'


def _prices(listed: Listed, exchange: Exchange) -> dict[Way, _Price]:
    """By way of buying: the document's word before the price file's."""
    price, entry = listed.price, listed.entry
    stated: list[tuple[Way, Quantity | None, float | None]] = [
        ("on_demand", entry.on_demand, None if price is None else price.on_demand_usd),
        ("spot", entry.spot, None if price is None else price.spot_usd),
    ]
    found: dict[Way, _Price] = {}
    for way, text, filed_usd in stated:
        if text is not None:
            usd = units.hourly_usd(text, f"{listed.at}.{way}", exchange)
            found[way] = _Price(_above_zero(listed, way, usd), _STATED)
        elif filed_usd is not None:
            usd = exchange.usd(filed_usd, "USD", f"{listed.at}: the price file")
            found[way] = _Price(usd, _filed(listed, way))
    if (reserved := listed.buying.reserved) is not None:
        usd, why = _reserved(listed, reserved, found, exchange)
        found["reserved"] = _Price(_above_zero(listed, "reserved", usd), why)
    return found


def _filed(listed: Listed, way: Way) -> str:
    """Which file says so, and how the price came about if it is not in it as such."""
    price = listed.price
    note = "" if price is None else (price.spot_note if way == "spot" else "") or price.note
    return f"the price list {listed.place.prices}" + (f", {note}" if note else "")


def _above_zero(listed: Listed, way: str, usd: float) -> float:
    if usd <= 0:
        raise ConfigError(
            f"{listed.at}.{way}: the price is 0; accepted: a price above 0", param=f"{listed.at}.{way}"
        )
    return usd


def _reserved(listed: Listed, value: Quantity, found: Mapping[Way, _Price], exchange: Exchange) -> _Price:
    match = _OFF.fullmatch(value) if isinstance(value, str) else None
    at = f"{listed.at}.reserved"
    if match is None:
        return _Price(units.hourly_usd(value, at, exchange), _STATED)
    if "on_demand" not in found:
        raise ConfigError(f"{at} is {value!r}, but {listed.name} has no on-demand price", param=at)
    percent = float(match[1])
    if not percent < 100:
        raise ConfigError(f"{at} is {value!r}; accepted: less than 100 % off", param=at)
    usd, why = found["on_demand"]
    return _Price(usd * (1 - percent / 100), f"{percent:g} % off the price by the hour ({why})")


def _availability(listed: Listed, folder: Path, notes: list[str]) -> float:
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


def check_reserved(listed: Listed, found: Sequence[Offer]) -> None:
    if not any(offer.purchase == "reserved" for offer in found):
        raise ConfigError(
            f"{listed.at}.committed: {listed.name} has no reserved price; accepted: reserved beside it",
            param=f"{listed.at}.committed",
        )
