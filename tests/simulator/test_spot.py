"""Spot capacity over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.simulator import InvalidTrace, SpotTrace, read_spot


@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    offset_s=st.floats(0, 500),
    scale=st.integers(0, 4),
    inverted=st.booleans(),
    at_s=st.floats(0, 1000),
)
def test_capacity_is_the_value_of_its_tick(
    counts: list[int], offset_s: float, scale: int, inverted: bool, at_s: float
) -> None:
    """Shifted, scaled, inverted and started over at the end."""
    trace = SpotTrace(10.0, np.array(counts), offset_s, scale, inverted)
    value = counts[int((at_s + offset_s) % (10.0 * len(counts)) // 10.0)]
    assert trace.capacity(at_s) == scale * (max(counts) - value if inverted else value)


@given(counts=st.lists(st.integers(0, 2), min_size=2, max_size=9), offset_s=st.floats(0, 300))
def test_between_two_changes_nothing_changes(counts: list[int], offset_s: float) -> None:
    """Following `next_change_s` meets every level."""
    trace = SpotTrace(10.0, np.array(counts), offset_s)
    at_s = 0.0
    for _ in range(30):
        next_s = trace.next_change_s(at_s)
        if next_s == float("inf"):
            assert len(set(counts)) == 1
            return
        assert next_s > at_s
        middle = trace.capacity((at_s + next_s) / 2)
        for share in (0.01, 0.3, 0.99):
            assert trace.capacity(at_s + share * (next_s - at_s)) in (middle, trace.capacity(at_s))
        at_s = next_s


def test_a_file_says_gap_and_counts(tmp_path: Path) -> None:
    """The layout of skypilot-org/spot-traces."""
    path = tmp_path / "zone.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 195}, "data": [1, 1, 0, 1]}))
    trace = read_spot(path, scale=5)
    assert [trace.capacity(t) for t in (0, 389, 390, 600, 780)] == [5, 5, 0, 5, 5]
    assert trace.share_available() == pytest.approx(0.75)


@pytest.mark.parametrize(
    "document",
    [
        "{", {}, {"metadata": {}, "data": [1]}, {"metadata": {"gap_seconds": 0}, "data": [1]},
        {"metadata": {"gap_seconds": 10}, "data": []}, {"metadata": {"gap_seconds": 10}, "data": [1, -1]},
        {"metadata": {"gap_seconds": 10}, "data": [1, None]}, {"metadata": {"gap_seconds": 10}, "data": [0.5]},
        {"metadata": {"gap_seconds": float("nan")}, "data": [1]}, {"metadata": {"gap_seconds": 10}, "data": 3},
        [1, 2],
    ],
)  # fmt: skip
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, document: Any) -> None:
    """With its name."""
    path = tmp_path / "zone.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InvalidTrace, match=r"zone\.json"):
        read_spot(path)
