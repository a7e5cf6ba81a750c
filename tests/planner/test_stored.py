"""Plans on disk: the same when read again, refused when they are none, and laid onto inputs that have changed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.errors import ConfigError
from stoa.planner.plan import Costs, Plan, Pool, Rented, Route
from stoa.planner.problem import PURCHASES, Bucket, Rules
from stoa.planner.program import sketch
from stoa.planner.stored import Stored, named, onto, parse_stored, read_stored, to_json, write_stored
from tests.planner.problems import draw

NAMES = st.text(max_size=8)
AMOUNTS = st.floats(0, 1e12)
POOLS = st.builds(Pool, NAMES, NAMES, NAMES, NAMES)


@st.composite
def stored_plans(draws: st.DrawFn) -> Stored:
    periods = draws(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    rates = st.tuples(*[AMOUNTS] * len(periods))
    bucket = st.builds(Bucket, NAMES, NAMES, AMOUNTS, AMOUNTS, rates, NAMES, AMOUNTS, st.booleans())
    buckets = draws(st.lists(bucket, min_size=1, max_size=4))
    counts = st.tuples(*[st.integers(0, 1000)] * len(periods))
    shares = st.tuples(*[st.floats(0, 1)] * len(periods))
    rented = st.builds(Rented, POOLS, st.sampled_from(PURCHASES), counts)
    route = st.builds(Route, NAMES, st.integers(0, len(buckets) - 1), POOLS | NAMES, shares)
    plan = Plan(
        tuple(draws(st.lists(rented, max_size=3, unique_by=lambda r: (r.pool, r.purchase)))),
        draws(st.dictionaries(st.tuples(NAMES, NAMES), st.integers(0, 99), max_size=3)),
        tuple(draws(st.lists(route, max_size=4, unique_by=lambda r: (r.world, r.bucket, str(r.target))))),
        Costs(draws(st.dictionaries(st.sampled_from(PURCHASES), AMOUNTS)), draws(AMOUNTS), draws(AMOUNTS)),
        draws(AMOUNTS | st.just(-math.inf)),
        draws(AMOUNTS),
        draws(NAMES),
    )
    return Stored(plan, tuple(periods), tuple(buckets), draws(NAMES))


@given(stored_plans())
def test_any_plan_reads_as_it_was_written(stored: Stored) -> None:
    """Names with any signs, all purchase options, pools and APIs: JSON and back is the same plan, to the last bit."""
    assert parse_stored(to_json(stored), "memory") == stored


@pytest.mark.parametrize("rules", [Rules(), Rules(survive_place=True, strain=1.5)], ids=["plain", "survives"])
def test_a_plan_of_a_problem_reads_as_it_was_written(rules: Rules, tmp_path: Path) -> None:
    """A real plan goes to a file and back, and onto its own problem, unchanged."""
    problem = draw(1, places=2, cards=4, models=2, periods=3, buckets=8, rate=10.0, api=True, rules=rules)
    plan = sketch(problem)
    write_stored(named(plan, problem, made="from a test"), tmp_path / "plan.json")
    again = read_stored(tmp_path / "plan.json")
    assert again.plan == plan
    assert again.made == "from a test"
    laid = onto(again, problem)
    assert set(laid.routes) == set(plan.routes)
    assert (laid.rented, laid.reserved, laid.costs) == (plan.rented, plan.reserved, plan.costs)
    assert not list(tmp_path.glob(".*"))


def small() -> dict[str, Any]:
    plan = Plan(
        (Rented(Pool("p", "L4", "m"), "on_demand", (1, 2)),),
        {("p", "L4"): 1},
        (Route("as forecast", 0, "api", (0.5, 0.5)),),
        Costs({"on_demand": 3.0}, 1.0, 0.0),
        4.0,
    )
    bucket = Bucket("s", "g", 10.0, 5.0, (1.0, 2.0))
    found: dict[str, Any] = json.loads(to_json(Stored(plan, ("day", "night"), (bucket,))))
    return found


def broken(path: str, value: Any) -> str:
    """The small plan with one value changed; None takes it away."""
    file = small()
    at: Any = file
    *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    for key in keys:
        at = at[key]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(file)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("version", 2, "version is 2; accepted: 1"),
        ("version", None, "version"),
        ("periods", None, "periods"),
        ("color", "blue", "color"),
        ("rented.0.color", "blue", "a key is unknown"),
        ("routes.0.world", None, "world"),
        ("buckets.0.prompt_tokens", -2, r"buckets\[0\].tokens is -2"),
        ("rented.0.counts", [1], r"rented\[0\].counts: 1 entries for 2 periods"),
        ("rented.0.counts.0", -1, "rented"),
        ("rented.0.counts.0", 1.5, "rented"),
        ("rented.0.purchase", "stolen", "stolen"),
        ("routes.0.bucket", 1, r"routes\[0\].bucket is 1; accepted: 0 to 0"),
        ("routes.0.shares.1", -0.1, "shares"),
        ("routes.0.shares", [1, 0, 0], "3 entries for 2 periods"),
        ("routes.0.target", {"place": "p"}, "machine"),
        ("costs.api", "much", "api"),
        ("costs.machines.spot", -1, "costs is -1"),
        ("periods", ["day", "day"], "stands twice"),
        ("reserved.0.2", -3, "reserved"),
    ],
)
def test_what_is_no_plan_is_refused(path: str, value: Any, said: str) -> None:
    """Wrong versions, missing and unknown keys, wrong lengths and impossible numbers are named, with the file."""
    with pytest.raises(ConfigError, match=said) as error:
        parse_stored(broken(path, value), "old.json")
    assert error.value.message.startswith("old.json: ")


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_garbage_is_refused(text: bytes | str) -> None:
    """Whatever is in the file, the error is a ConfigError."""
    with pytest.raises(ConfigError, match=r"old\.json"):
        parse_stored(text, "old.json")


def test_nesting_without_end_is_refused() -> None:
    """A file of brackets only does not bring the reader down."""
    with pytest.raises(ConfigError):
        parse_stored('{"version": 1, "periods": ' + "[" * 100_000, "old.json")


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_stored(tmp_path / "none.json")
    problem = draw(1, places=1, cards=2, models=1, periods=1, buckets=2, rate=1.0)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_stored(named(sketch(problem), problem), tmp_path / "nowhere" / "plan.json")


def test_periods_are_matched_by_name() -> None:
    """Periods in another order are put in order; other ones are refused, and both sides named."""
    problem = draw(2, places=1, cards=3, models=1, periods=3, buckets=3, rate=5.0)
    stored = named(sketch(problem), problem)
    turned = replace(
        problem,
        periods=problem.periods[::-1],
        buckets=tuple(replace(b, rates=b.rates[::-1]) for b in problem.buckets),
    )
    assert [r.counts for r in onto(stored, turned).rented] == [r.counts[::-1] for r in stored.plan.rented]
    other = replace(problem, periods=(*problem.periods[:2], replace(problem.periods[2], name="night")))
    with pytest.raises(ConfigError, match="only the plan has hour 2; only the inputs have night"):
        onto(stored, other)


def test_buckets_are_matched_by_who_asks_and_size() -> None:
    """A bucket of new inputs goes where the nearest old one of its service went; one of a new service goes nowhere."""
    problem = draw(2, places=1, cards=3, models=2, periods=2, buckets=4, rate=5.0)
    stored = named(sketch(problem), problem)
    moved = tuple(replace(b, prompt_tokens=1.02 * b.prompt_tokens) for b in problem.buckets)
    strange = replace(problem.buckets[0], service="new")
    laid = onto(stored, replace(problem, buckets=(strange, *moved)))
    assert {replace(r, bucket=r.bucket - 1) for r in laid.routes} == set(stored.plan.routes)
