"""Quantities with units, and money."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.errors import ConfigError
from stoa.planner.files import units
from stoa.planner.files.units import Exchange

USD = Exchange()
EUROS = Exchange("USD", {"EUR": 1.08})
numbers = st.decimals(0, 10**3, places=3).map(str)  # of weeks too: thirty years are the most
spaces = st.sampled_from(["", " ", "  "])
READERS = {
    units.seconds: {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800},
    units.gib: {"GiB": 1, "MiB": 1 / 1024, "TiB": 1024, "GB": 1e9 / 2**30, "MB": 1e6 / 2**30},
    units.kilowatts: {"W": 1e-3, "kW": 1, "MW": 1e3},
    units.per_second: {"/s": 1, "req/min": 1 / 60, "ktok/h": 1e3 / 3600, "tokens/d": 1 / 86400},
    units.kilograms: {"g": 1e-3, "kg": 1, "t": 1e3},
    units.grams_per_kwh: {"g/kWh": 1, "kg/kWh": 1e3},
}
CASES = [(reader, unit, factor) for reader, known in READERS.items() for unit, factor in known.items()]


@pytest.mark.parametrize(("reader", "unit", "factor"), CASES)
@given(number=numbers, space=spaces)
def test_a_number_and_a_unit_are_read_with_or_without_a_space(reader, unit, factor, number, space) -> None:  # type: ignore[no-untyped-def]
    """The value is the number times what the unit is worth."""
    assert reader(f"{number}{space}{unit}", "x") == pytest.approx(float(number) * factor, rel=1e-12)


@given(number=numbers, space=spaces, currency=st.sampled_from(["USD", "usd", "$", ""]))
def test_money_without_a_currency_is_the_documents(number: str, space: str, currency: str) -> None:
    """Dollars may be written as a sign or a code, before or behind the number."""
    expected = pytest.approx(float(number), rel=1e-12)
    assert units.hourly_usd(f"{number}{space}{currency}/h", "x", USD) == expected
    assert units.token_usd(f"{number}{space}{currency}{space}/ Mtok", "x", USD) * 1e6 == expected
    if currency == "$":
        assert units.hourly_usd(f"${space}{number}/h", "x", USD) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (units.hourly_usd("24 USD/d", "x", USD), 1.0),
        (units.hourly_usd("730 USD/month", "x", USD), 1.0),
        (units.hourly_usd("1 EUR/h", "x", EUROS), 1.08),
        (units.hourly_usd("€1/h", "x", EUROS), 1.08),
        (units.hourly_usd("1/h", "x", Exchange("EUR", {"EUR": 1.08})), 1.08),
        (units.hourly_usd("1 USD/h", "x", Exchange("EUR", {"EUR": 1.08})), 1.0),
        (units.token_usd("0.6 USD/1M tokens", "x", USD), 0.6e-6),
        (units.token_usd("0.6 USD/ktok", "x", USD), 0.6e-3),
        (units.kwh_usd("250 USD/MWh", "x", USD), 0.25),
        (units.gib_usd("1 USD/GB", "x", USD), 2**30 / 1e9),
        (units.usd("1e4 USD", "x", USD), 1e4),
        (units.share("30 %", "x"), 0.3),
        (units.share(0.3, "x"), 0.3),
        (units.share("0.3", "x"), 0.3),
        (units.hours("30 d", "x"), 720.0),
    ],
)
def test_each_kind_of_quantity_has_its_unit(found: float, expected: float) -> None:
    """Prices become USD an hour, a token, a kWh, a GiB."""
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (200, "x has no unit; accepted: a number from 0 and a unit"),
        ("200", "has no unit"),
        ("200 parsecs", "x is '200 parsecs'.*us, µs, ms, s"),
        ("-2 s", "'-2 s'"),
        ("1,5 s", "'1,5 s'"),
        ("nan s", "'nan s'"),
        ("1e999 s", "too large"),
        ("", "''"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_units_that_are_accepted(text: str, says: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=says) as caught:
        units.seconds(text, "x")
    assert caught.value.param == "x"


@pytest.mark.parametrize("text", ["24 Gb", "24 gb", "24 gib", "24 G"])
def test_bits_are_no_bytes(text: str) -> None:
    """Units are read in their own case."""
    with pytest.raises(ConfigError, match="GiB"):
        units.gib(text, "x")


def test_a_currency_without_a_rate_is_refused_by_both_names() -> None:
    """Whether it is the amount's or the document's."""
    with pytest.raises(
        ConfigError, match=r"price is in EUR, the document's currency is USD.*\[exchange\] EUR"
    ):
        units.hourly_usd("0.6 EUR/h", "price", USD)
    with pytest.raises(ConfigError, match=r"in USD, the document's currency is EUR.*\[exchange\] EUR"):
        units.hourly_usd("0.6 USD/h", "price", Exchange("EUR"))


@pytest.mark.parametrize("text", ["$1 EUR/h", "1 USD", "1 USD/fortnight", "1 dollar/h", "1 USD/H"])
def test_what_is_no_hourly_price_is_refused(text: str) -> None:
    """Two currencies, no time, or an unknown one."""
    with pytest.raises(ConfigError, match="accepted: a number from 0 and a unit"):
        units.hourly_usd(text, "x", EUROS)


def test_a_share_is_at_most_the_whole() -> None:
    """In either form."""
    for value in (1.2, "120 %", -0.1):
        with pytest.raises(ConfigError, match=r"from 0 (to 1|and a unit)"):
            units.share(value, "x")
