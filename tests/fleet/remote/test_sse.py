"""Events are the same however their bytes are cut, and no stream can fill the memory."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.remote.sse import BadStream, EventParser, SseEvent

DATA = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=12)


def parse(parts: list[bytes]) -> list[SseEvent]:
    parser = EventParser()
    return [e for part in parts for e in parser.feed(part)] + parser.finish()


@given(
    st.lists(st.tuples(st.sampled_from(["", "error"]), st.lists(DATA, min_size=1, max_size=3)), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 200), max_size=8),
    st.booleans(),
)
def test_cuts_change_nothing(
    events: list[tuple[str, list[str]]], end: str, cuts: list[int], commented: bool
) -> None:
    """Inside characters, inside line ends, anywhere."""
    lines = []
    for name, data in events:
        lines += (
            [f"event: {name}"] * bool(name) + [": comment"] * commented + [f"data: {d}" for d in data] + [""]
        )
    stream = "".join(line + end for line in lines).encode()
    edges = sorted({0, len(stream), *(min(c, len(stream)) for c in cuts)})
    parts = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(parts) == [SseEvent(name or "message", "\n".join(data)) for name, data in events]
    assert parse([bytes([b]) for b in stream]) == parse([stream])


def test_the_last_event_needs_no_blank_line() -> None:
    """Nor a line end; a byte order mark in front and unknown fields do not matter."""
    assert parse([b"\xef\xbb\xbfid: 7\nretry\ndata:x"]) == [SseEvent("message", "x")]


@given(st.binary(max_size=300))
def test_garbage_is_ignored_or_refused(garbage: bytes) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(BadStream):
        parse([garbage[:7], garbage[7:]])


@pytest.mark.parametrize("piece", [b"x" * 10, b"x" * 101 + b"\n", b"data: " + b"x" * 4 + b"\n", b"data\n"])
def test_lines_and_events_are_bounded(piece: bytes) -> None:
    """A line that never ends and an event of endless lines are both refused, be the lines empty."""
    parser = EventParser(max_event_bytes=100)

    def flood() -> None:
        for _ in range(102):
            parser.feed(piece)

    with pytest.raises(BadStream):
        flood()
