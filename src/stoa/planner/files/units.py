"""Quantities as people write them: a number and a unit, "200 ms", "80GiB", "12.5 USD/h", "0.6 EUR/Mtok", "20 /s", "30 d".

Units are written as below, in this case: a GB is no Gb. A number without a unit is refused, for it says too little.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stoa.errors import ConfigError

Quantity = (
    str | int | float
)  # as a file has it; a number is accepted where there is no unit to be wrong about

_SECONDS = {
    **dict.fromkeys(("us", "µs"), 1e-6),
    "ms": 1e-3,
    **dict.fromkeys(("s", "sec"), 1.0),
    "min": 60.0,
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_LONGEST_S = 1e9
_GIB = {
    **{f"{p}iB": 1024.0**n for n, p in enumerate(("K", "M", "G", "T"), -2)},
    **{f"{p}B": 1000.0 ** (n + 3) / 1024**3 for n, p in enumerate(("k", "M", "G", "T"), -2)},
}
_HOURS = {  # of what is paid by time; a month is a twelfth of 365 days
    **dict.fromkeys(("h", "hour"), 1.0),
    **dict.fromkeys(("d", "day"), 24.0),
    "month": 730.0,
    **dict.fromkeys(("y", "year"), 8760.0),
}
_TOKENS = {
    **dict.fromkeys(("tok", "token"), 1.0),
    **dict.fromkeys(("ktok", "1k tokens"), 1e3),
    **dict.fromkeys(("Mtok", "1M tokens"), 1e6),
}
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_COUNTED = {  # what may stand before the slash of a rate
    **dict.fromkeys(("", "req", "requests", "tok", "tokens"), 1.0),
    **dict.fromkeys(("ktok", "k tokens"), 1e3),
    **dict.fromkeys(("Mtok", "M tokens"), 1e6),
}
_RATES = {f"{what}/{time}": n / s for what, n in _COUNTED.items() for time, s in _TIMES.items()}
_KILOWATTS = {"W": 1e-3, "kW": 1.0, "MW": 1e3}
_GRAMS = {"g": 1.0, "kg": 1e3, "t": 1e6}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([^\s0-9.](?:.*\S)?)?\s*")
_SYMBOLS = {"$": "USD", "€": "EUR", "£": "GBP"}
_MONEY = re.compile(rf"\s*([$€£])?\s*({_NUMBER})\s*([$€£]|[A-Za-z]{{3}}(?![A-Za-z]))?\s*(/.*)?")


@dataclass(frozen=True, slots=True)
class Exchange:
    """`currency`: the document's, meant where an amount names none. `rates`: USD for one of each other currency."""

    currency: str = "USD"
    rates: Mapping[str, float] = field(default_factory=dict)

    def usd(self, amount: float, currency: str | None, at: str = "currency") -> float:
        """ConfigError for a currency without a rate, naming it and the document's."""
        code = self.currency if currency is None else currency
        if code == "USD" and (self.currency == "USD" or self.currency in self.rates):
            return amount
        rate = self.rates.get(code)
        if rate is None:
            needed = self.currency if code == "USD" else code
            raise ConfigError(
                f"{at} is in {code}, the document's currency is {self.currency}, and plans are in USD; "
                f"accepted: [exchange] {needed} = USD for one {needed}",
                param=at,
            )
        return amount * rate


def seconds(value: Quantity, at: str) -> float:
    """Of up to thirty years."""
    found = _read(value, at, _SECONDS, "200 ms")
    if found > _LONGEST_S:
        raise ConfigError(f"{at} is {value!r}; accepted: up to thirty years", param=at)
    return found


def hours(value: Quantity, at: str) -> float:
    return seconds(value, at) / 3600


def gib(value: Quantity, at: str) -> float:
    """GB are 10^9 bytes, GiB 2^30."""
    return _read(value, at, _GIB, "80 GiB")


def gb_per_s(value: Quantity, at: str) -> float:
    """Of memory: 10^9 bytes a second."""
    return _read(value, at, {"GB/s": 1.0, "TB/s": 1e3}, "1008 GB/s")


def tflops(value: Quantity, at: str) -> float:
    """10^12 operations a second."""
    return _read(value, at, {"TFLOPS": 1.0, "TFLOP/s": 1.0, "PFLOPS": 1e3}, "165 TFLOPS")


def kilowatts(value: Quantity, at: str) -> float:
    return _read(value, at, _KILOWATTS, "700 W")


def per_second(value: Quantity, at: str) -> float:
    """Of requests, or of tokens."""
    return _read(value, at, _RATES, "300 req/min")


def kilograms(value: Quantity, at: str) -> float:
    return _read(value, at, _GRAMS, "2 t") / 1e3


def grams_per_kwh(value: Quantity, at: str) -> float:
    return _read(value, at, {f"{unit}/kWh": n for unit, n in _GRAMS.items()}, "380 g/kWh")


def share(value: Quantity, at: str) -> float:
    """0.3 or "30 %", from 0 to 1."""
    if isinstance(value, str):
        found = _read(value, at, {"%": 0.01, "": 1.0}, "30 %")
    else:
        found = float(value)
    if not 0 <= found <= 1:
        raise ConfigError(f"{at} is {value!r}; accepted: a share from 0 to 1, or 0 % to 100 %", param=at)
    return found


def usd(value: Quantity, at: str, exchange: Exchange) -> float:
    return _money(value, at, {"": 1.0}, "5000 USD", exchange)


def hourly_usd(value: Quantity, at: str, exchange: Exchange) -> float:
    return _money(value, at, {f"/{unit}": 1 / n for unit, n in _HOURS.items()}, "12.5 USD/h", exchange)


def token_usd(value: Quantity, at: str, exchange: Exchange) -> float:
    return _money(value, at, {f"/{unit}": 1 / n for unit, n in _TOKENS.items()}, "0.6 USD/Mtok", exchange)


def kwh_usd(value: Quantity, at: str, exchange: Exchange) -> float:
    return _money(value, at, {"/kWh": 1.0, "/MWh": 1e-3}, "0.25 USD/kWh", exchange)


def gib_usd(value: Quantity, at: str, exchange: Exchange) -> float:
    """USD for each GiB of traffic."""
    return _money(value, at, {f"/{unit}": 1 / n for unit, n in _GIB.items()}, "0.09 USD/GB", exchange)


def _read(value: Quantity, at: str, units: Mapping[str, float], example: str) -> float:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = "" if match is None else (match[2] or "")
    if match is None or unit not in units:
        why = "has no unit" if _is_plain(value) else f"is {value!r}"
        raise ConfigError(f"{at} {why}; {_accepted(units, example)}", param=at)
    return _finite(_times(match[1], units[unit]), value, at)


def _money(value: Quantity, at: str, units: Mapping[str, float], example: str, exchange: Exchange) -> float:
    match = _MONEY.fullmatch(value) if isinstance(value, str) else None
    unit = "" if match is None else re.sub(r"^/\s*", "/", (match[4] or "").rstrip())
    if match is None or unit not in units or (match[1] and match[3]):
        why = "has no unit" if _is_plain(value) else f"is {value!r}"
        raise ConfigError(f"{at} {why}; {_accepted(units, example)}", param=at)
    written = match[1] or match[3]
    currency = None if written is None else _SYMBOLS.get(written, written.upper())
    return _finite(exchange.usd(_times(match[2], units[unit]), currency, at), value, at)


def _is_plain(value: Quantity) -> bool:
    return not isinstance(value, str) or re.fullmatch(rf"\s*{_NUMBER}\s*", value) is not None


def _times(number: str, factor: float) -> float:
    """Rounded once: 95 hundredths are 0.95."""
    return float(number) * factor if factor >= 1 else float(number) / (1 / factor)


def _finite(found: float, value: Quantity, at: str) -> float:
    if not math.isfinite(found):
        raise ConfigError(f"{at} is {value!r}, which is too large", param=at)
    return found


def _accepted(units: Mapping[str, float], example: str) -> str:
    named = ", ".join(unit for unit in units if unit)
    return f'accepted: a number from 0 and a unit, such as "{example}"' + (f" ({named})" if named else "")
