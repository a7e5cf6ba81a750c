"""Requests into buckets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.errors import ConfigError
from stoa.planner.files.arrivals import Arrivals, Labels, read_trace
from stoa.planner.files.clock import Start, read_clock
from stoa.planner.files.demand import Bucketed, Kind, Who, bucketed
from stoa.planner.files.document import Periods
from stoa.planner.files.table import read_projects, read_table
from stoa.planner.problem import Period
from tests.planner.prices.shared import DATA, needs_data, write

MIDNIGHT = Start(datetime(2024, 1, 1, tzinfo=UTC))
HOUR_S, DAY_S = 3600.0, 86400.0


def labels(values: list[str]) -> Labels:
    known = sorted(set(values) - {""})
    return Labels(np.array([known.index(v) if v else -1 for v in values], np.int32), known)


def arrivals(
    times: list[float],
    prompts: list[int] | None = None,
    outputs: list[int] | None = None,
    *,
    projects: list[str] | None = None,
    classes: list[str] | None = None,
    adapters: list[str] | None = None,
) -> Arrivals:
    count = len(times)
    return Arrivals(
        np.array(times, np.float64),
        np.array(prompts or [100] * count, np.int32),
        np.array(outputs or [10] * count, np.int32),
        labels(projects or [""] * count),
        labels(adapters or [""] * count),
        Labels.none(count),
        labels(classes or [""] * count),
    )


def by_who(who: Who) -> Kind:
    return Kind(who.service_class or "chat", who.project or "default")


def buckets(
    found: Arrivals, until_s: float, kind: str = "day", edges: tuple[list[float], list[float]] = ([200], [50])
) -> Bucketed:
    clock = read_clock(Periods(kind=kind), "UTC")  # type: ignore[arg-type]
    return bucketed(found, clock, MIDNIGHT, by_who, *edges, 0.0, until_s)


sizes = st.integers(1, 50_000)
requests = st.lists(
    st.tuples(st.floats(0, 2 * DAY_S, exclude_max=True), sizes, sizes, st.sampled_from(["", "a", "b"])),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(
    rows=requests,
    prompt_edges=st.lists(sizes, unique=True, max_size=5).map(sorted),
    output_edges=st.lists(sizes, unique=True, max_size=5).map(sorted),
    kind=st.sampled_from(["flat", "day"]),
)
def test_no_token_is_lost_or_made_up(
    rows: list[tuple[float, int, int, str]], prompt_edges: list[float], output_edges: list[float], kind: str
) -> None:
    """Rates x seconds x sizes are all tokens of the trace, whatever the edges and periods."""
    times, prompts, outputs, projects = (list(column) for column in zip(*sorted(rows), strict=True))
    found = buckets(
        arrivals(times, prompts, outputs, projects=projects), 2 * DAY_S, kind, (prompt_edges, output_edges)
    )
    came = [np.dot(found.rates(k), found.seconds) for k in range(len(found.sizes))]
    assert sum(came) == pytest.approx(len(rows), rel=1e-12)
    for tokens, name in ((prompts, "prompt_tokens"), (outputs, "output_tokens")):
        total = sum(n * getattr(size, name) for n, size in zip(came, found.sizes, strict=True))
        assert total == pytest.approx(sum(tokens), rel=1e-12)
    assert found.seconds.sum() == pytest.approx(2 * DAY_S)


def test_buckets_part_sizes_at_their_edges_and_take_the_mean() -> None:
    """An edge belongs to what is below it."""
    found = buckets(arrivals([0, 1, 2, 3], [200, 100, 201, 400], [50, 50, 50, 60]), DAY_S, "flat")
    assert [(s.prompt_tokens, s.output_tokens, s.counts) for s in found.sizes] == [
        (150, 50, (2,)), (201, 50, (1,)), (400, 60, (1,)),
    ]  # fmt: skip
    assert found.rates(0) == (2 / DAY_S,)


def test_kinds_are_kept_apart() -> None:
    """By class, project and whatever else a request says of itself."""
    found = buckets(arrivals([0, 1, 2], projects=["a", "", "a"], classes=["batch", "", ""]), DAY_S, "flat")
    assert [s.kind for s in found.sizes] == [Kind("chat", "default"), Kind("chat", "a"), Kind("batch", "a")]


def test_rates_are_means_over_the_hours_that_were_seen() -> None:
    """Two and a half days: the first half's hours came three times, the others twice."""
    found = buckets(arrivals([0, DAY_S, 2 * DAY_S, 20 * HOUR_S]), 2.5 * DAY_S)
    (rates,) = (found.rates(k) for k in range(len(found.sizes)))
    assert rates[0] == pytest.approx(3 / (3 * HOUR_S))
    assert rates[20] == pytest.approx(1 / (2 * HOUR_S))


def test_a_part_of_a_trace_leaves_the_rest_alone() -> None:
    """To plan with some days and prove with others."""
    clock = read_clock(Periods(kind="flat"), "UTC")
    found = bucketed(arrivals([0, 10, 20, 70]), clock, MIDNIGHT, by_who, [], [], 10, 70)
    assert (found.sizes[0].counts, found.seconds.tolist()) == ((2,), [60])


def test_adapters_of_a_kind_are_there_once() -> None:
    """Spread over its buckets by requests; requests without an adapter need none."""
    found = buckets(
        arrivals([0, 1, 2, 3], [1, 1, 1, 900], adapters=["x", "y", "x", "y"], projects=["a", "a", "a", "a"]),
        DAY_S,
        "flat",
    )
    assert [s.adapters for s in found.sizes] == [1.5, 0.5]
    assert [s.adapters for s in buckets(arrivals([0]), DAY_S, "flat").sizes] == [0]


@pytest.mark.parametrize(
    ("times", "until_s", "says"),
    [
        ([0, 1], 2, "spans 2 s; accepted: 60 s at least"),
        ([0, 1], HOUR_S, "not a second of 01:00-02:00, .* and 18 more periods"),
        ([100], 99, "no requests between 0 s and 99 s"),
    ],
)
def test_a_trace_that_says_nothing_of_some_hours_is_refused(
    times: list[float], until_s: float, says: str
) -> None:
    """With what would be accepted."""
    with pytest.raises(ConfigError, match=says):
        buckets(arrivals(times), until_s)


def test_a_table_has_a_rate_for_each_period_or_for_all(tmp_path: Path) -> None:
    """Lines of one size and kind are one bucket."""
    text = (
        "prompt_tokens,output_tokens,requests_per_s,project,class,period,adapters\n"
        "100,10,1,a,,day,3\n100,10,0.5,a,,night,2\n200,20,2,,batch,,\n"
    )
    path = write(tmp_path, text)
    assert read_projects(path) == {"a"}
    first, second = read_table(path, [Period("day", 12), Period("night", 12)], by_who)
    assert (first.kind, first.counts, first.adapters) == (Kind("chat", "a"), (1.0, 0.5), 3.0)
    assert (second.kind, second.counts, second.prompt_tokens) == (Kind("batch", "default"), (2.0, 2.0), 200)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("100,10,-1,", "line 2: requests_per_s is '-1'"),
        ("0,10,1,", "line 2: prompt_tokens is '0'"),
        (",10,1,", "line 2: prompt_tokens is ''"),
        ("100,10,1,noon", "line 2: period is 'noon'; accepted: one of day"),
        ("", "no demand in it"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(tmp_path: Path, line: str, says: str) -> None:
    """File, line and column."""
    path = write(tmp_path, "prompt_tokens,output_tokens,requests_per_s,period\n" + line + "\n")
    with pytest.raises(ConfigError, match=says):
        read_table(path, [Period("day", 24)], by_who)


class TestRealTrace:
    """ServeGen's two days of 55 projects."""

    pytestmark = needs_data

    def test_tokens_are_conserved(self) -> None:
        """433,000 requests into some dozens of buckets."""
        trace = read_trace(DATA / "traces" / "servegen_mid_2days.csv.gz", MIDNIGHT.at.tzinfo)  # type: ignore[arg-type]
        clock = read_clock(Periods(), "UTC")
        kind = Kind("chat", "default")
        found = bucketed(
            trace, clock, MIDNIGHT, lambda who: kind, [128, 512, 2048, 8192], [32, 128, 512], 0.0, 2 * DAY_S
        )
        assert len(found.sizes) < 21
        came = np.array([np.dot(found.rates(k), found.seconds) for k in range(len(found.sizes))])
        assert came.sum() == pytest.approx(432_866, rel=1e-12)
        tokens = np.array([(s.prompt_tokens, s.output_tokens) for s in found.sizes])
        assert came @ tokens[:, 0] == pytest.approx(trace.prompt_tokens.sum(dtype=np.int64), rel=1e-12)
        assert came @ tokens[:, 1] == pytest.approx(trace.output_tokens.sum(dtype=np.int64), rel=1e-12)
