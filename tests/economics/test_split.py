"""Shares: sums conserved, whatever the numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoa.economics.accounts import Account, parse_account
from stoa.economics.prices import PriceSpan, PriceTable
from stoa.economics.split import HOUR_NS, divide_lost, divide_used, segments, split
from stoa.engine.usage import AccountLine, Interval

NANOS = 10**9
EPOCH_NS = 1_800_000_000 * NANOS


def machine(*spans: tuple[int, int, int | None]) -> PriceTable:
    """(USD per hour in nano-dollars, from, to) of machine:default."""
    return PriceTable(PriceSpan("machine:default", "hour", a, low, high) for a, low, high in spans)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_a_split_sums_to_the_total(total: int, weights: list[int]) -> None:
    """Nobody is more than one unit from the exact share, and no weight means no share unless nobody has one."""
    shares = split(total, weights)
    assert sum(shares) == total
    whole = sum(weights)
    if whole:
        assert all(abs(s * whole - total * w) < whole for s, w in zip(shares, weights, strict=True))
        assert all(s == 0 for s, w in zip(shares, weights, strict=True) if w == 0)


def test_ties_go_to_the_first() -> None:
    """The same question always has the same answer."""
    assert split(2, [1, 1, 1]) == [1, 1, 0]
    assert split(7, [0, 0]) == [7, 0]


@given(
    st.lists(st.integers(1, 10 * NANOS), min_size=1, max_size=20),
    st.integers(0, 10**13),
    st.integers(0, NANOS),
)
def test_stretches_add_up_to_the_price_of_the_whole(lengths: list[int], rate: int, offset: int) -> None:
    """However time is cut, the sum is the price x the time, rounded down once."""
    prices, origin = machine((rate, 0, None)), EPOCH_NS + offset
    total, start = 0, origin
    for length in lengths:
        total += sum(s.total_nanos for s in segments(prices, "default", 0, origin, start, start + length))
        start += length
    assert total == rate * sum(lengths) // HOUR_NS


def test_a_price_change_cuts_the_time() -> None:
    """Each side at its own rate, each rounded down from its own beginning."""
    change = EPOCH_NS // NANOS + 10
    prices = machine((3600 * NANOS, 0, change), (7200 * NANOS, change, None))
    first, second = segments(prices, "default", 0, EPOCH_NS, EPOCH_NS + 9 * NANOS, EPOCH_NS + 12 * NANOS)
    assert (first.total_nanos, second.total_nanos) == (1 * NANOS, 4 * NANOS)
    assert second.origin_ns == second.start_ns == change * NANOS


def test_energy_and_the_default_machine() -> None:
    """A node costs its machine, or the default one, plus watts / 1000 x the price of a kWh."""
    prices = PriceTable(
        [
            PriceSpan("machine:default", "hour", 100, 0),
            PriceSpan("machine:h100", "hour", 2 * NANOS, 50),
            PriceSpan("energy", "kWh", 300_000_000, 0),
        ]
    )
    assert prices.hourly_nanos("h100", 700_000, 60) == 2 * NANOS + 210_000_000
    assert prices.hourly_nanos("h100", 0, 49) == 100
    assert prices.hourly_nanos("laptop", 0, 60) == 100


lines = st.lists(st.tuples(st.integers(0, NANOS), st.integers(0, 10**13), st.integers(0, 10**12)), max_size=6)


@given(lines, st.integers(0, 10**14), st.integers(0, 10**6), st.integers(0, 1 << 34))
def test_an_interval_is_divided_exactly(
    used: list[tuple[int, int, int]], rate: int, memory_ppm: int, pool_bytes: int
) -> None:
    """Entries sum to the segment, and quantities to what was used, also when use exceeds what there is."""
    interval = Interval(
        number=0,
        start_ns=EPOCH_NS,
        end_ns=EPOCH_NS + NANOS,
        pool_bytes=pool_bytes,
        lines=[
            AccountLine(account=str(Account(f"p{i}", None, "m")), compute_ns=c, kv_byte_ms=k, adapter_byte_ms=a)
            for i, (c, k, a) in enumerate(used)
        ],
    )  # fmt: skip
    prices = machine((rate, 0, None))
    for segment in segments(prices, "default", 0, EPOCH_NS, EPOCH_NS, interval.end_ns):
        entries = divide_used(segment, interval, memory_ppm)
        assert sum(e.amount_nanos for e in entries) == segment.total_nanos
        assert sum(e.quantity for e in entries if e.line_item == "compute") == sum(c for c, _, _ in used)
        assert sum(e.amount_nanos for e in divide_lost(segment)) == segment.total_nanos


def test_who_pays_for_what() -> None:
    """Compute by time, memory by byte-milliseconds, the rest is idle and nobody's."""
    pool = 1 << 20
    interval = Interval(
        number=0,
        start_ns=EPOCH_NS,
        end_ns=EPOCH_NS + NANOS,
        pool_bytes=pool,
        lines=[
            AccountLine(account=str(Account("a", "k", "m")), compute_ns=NANOS // 2, kv_byte_ms=pool * 250),
            AccountLine(account=str(Account("b", None, "m")), compute_ns=NANOS // 4, adapter_byte_ms=pool * 500),
        ],
    )  # fmt: skip
    (segment,) = segments(machine((3600 * 1000, 0, None)), "default", 0, EPOCH_NS, EPOCH_NS, interval.end_ns)
    found = {
        (e.account and e.account.project_id, e.line_item): e.amount_nanos
        for e in divide_used(segment, interval, 200_000)
    }
    assert found == {
        ("a", "compute"): 400,
        ("b", "compute"): 200,
        (None, "idle compute"): 200,
        ("a", "memory"): 50,
        ("b", "memory"): 100,
        (None, "idle memory"): 50,
    }


def test_accounts_survive_the_way() -> None:
    """What a request is booked under is read back; anything else belongs to the default project."""
    for account in (Account("p", "k", "m"), Account("p", None, "m")):
        assert parse_account(str(account)) == account
    assert parse_account("") == parse_account("x\x1fy") == Account("default", None, "")
