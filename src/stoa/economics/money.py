"""Dollars as people write them, to and from integer nano-dollars (10⁻⁹ USD)."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from stoa.errors import InvalidPrice

NANOS = 10**9
_MOST_USD = 10**9  # an hour of anything costs less than a billion; keeps sums inside 64 bits
_ACCEPTED = f"an amount in USD such as 2.35, at least 0, at most {_MOST_USD}, with at most 9 decimals"


def parse_usd(amount: str | int | float | Decimal) -> int:
    """Nano-dollars, exactly. InvalidPrice for what is no number, negative, too large or finer than a nano-dollar
    (so a float such as 0.1 + 0.2 is refused, and 2.35 is not)."""
    try:
        value = Decimal(str(amount).strip())
    except InvalidOperation:
        value = Decimal("NaN")
    if isinstance(amount, bool) or not value.is_finite() or not 0 <= value <= _MOST_USD:
        raise InvalidPrice(f"the amount is {str(amount)[:80]!r}; accepted: {_ACCEPTED}", param="amount")
    nanos = value.scaleb(9)
    if nanos != nanos.to_integral_value():
        raise InvalidPrice(
            f"the amount {str(amount)[:80]!r} is finer than a nano-dollar; accepted: {_ACCEPTED}",
            param="amount",
        )
    return int(nanos)


def format_usd(nanos: int) -> str:
    """As few decimals as say it exactly, but two at least: 2350000000 → "2.35", 1 → "0.000000001"."""
    sign, (whole, rest) = "-" if nanos < 0 else "", divmod(abs(nanos), NANOS)
    return f"{sign}{whole}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"
