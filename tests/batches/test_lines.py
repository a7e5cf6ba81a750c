"""Input files: how they are cut into lines, and what is wrong with a line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoa.batches import lines
from stoa.batches.lines import Inspection, InvalidLine, RawLine, cut, read_line
from tests.batches.fakes import ENDPOINT, line
from tests.tenancy.meters.clock import at_once


async def chunks(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


async def cut_all(text: bytes, size: int) -> list[RawLine]:
    return [raw async for some in cut(chunks(text, size)) for raw in some]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([b"", b" ", b"a", b"{}", b"\xc3\xa9\r", b"x" * 30]), max_size=12),
    st.integers(1, 40),
)
def test_cutting_depends_on_line_ends_alone(texts: list[bytes], size: int) -> None:
    """Not on how the file comes in; blank lines count, but are none."""
    found = at_once(cut_all(b"\n".join(texts), size))
    assert found == [RawLine(i, text) for i, text in enumerate(texts, 1) if text.strip()]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    """Editors on Windows write one."""
    assert at_once(cut_all(b"\xef\xbb\xbf{}\n{}", 100)) == [RawLine(1, b"{}"), RawLine(2, b"{}")]


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not gathered in memory."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(InvalidLine) as refused:
        at_once(cut_all(b"short\n" + b"x" * 10_000, 50))
    assert refused.value.error.line == 2


def test_a_request_is_read() -> None:
    """Its body stays as it was written."""
    found, model = read_line(RawLine(7, line("a", extra=1)), ENDPOINT)
    assert (found.number, found.custom_id, model) == (7, "a", "m")
    assert json.loads(found.body)["messages"] == [{"role": "user", "content": "a"}]


BAD: list[tuple[bytes, str, str | None]] = [
    (b"{", "invalid_json_line", None),
    (b"\xff", "invalid_json_line", None),
    (line("a")[:-1] + b', "x": ' + b"[" * 100_000, "invalid_json_line", None),
    (b"[]", "invalid_request", None),
    (b"{}", "invalid_request", "custom_id"),
    (line("a", custom_id=7), "invalid_request", "custom_id"),
    (line(""), "invalid_request", "custom_id"),
    (line("x" * 513), "invalid_request", "custom_id"),
    (line("a", method="GET"), "invalid_method", "method"),
    (line("a", url="/v1/embeddings"), "url_mismatch", "url"),
    (line("a", body="text"), "invalid_request", None),
    (line("a", body={}), "invalid_request", "model"),
    (line("a", body={"model": "m", "stream": True}), "invalid_request", "body.stream"),
]


@pytest.mark.parametrize(("text", "code", "param"), BAD)
def test_what_is_wrong_is_named(text: bytes, code: str, param: str | None) -> None:
    """By a code, a line, and the field if there is one."""
    with pytest.raises(InvalidLine) as refused:
        read_line(RawLine(3, text), ENDPOINT)
    error = refused.value.error
    assert (error.code, error.line, error.param) == (code, 3, param)
    assert error.message


def inspect(*texts: bytes) -> Inspection:
    inspection = Inspection(ENDPOINT)
    inspection.add(RawLine(i, text) for i, text in enumerate(texts, 1))
    inspection.end()
    return inspection


def test_a_whole_file_is_looked_at() -> None:
    """Every line that is wrong is told; ids must differ, models may."""
    found = inspect(line("a"), b"{", line("a"), line("b", body={"model": "n"}))
    assert [(e.line, e.code) for e in found.errors] == [(2, "invalid_json_line"), (3, "duplicate_custom_id")]
    assert found.total == 4
    assert found.model is None
    assert inspect(line("a"), line("b")).model == "m"
    assert [e.code for e in inspect().errors] == ["empty_file"]


def test_a_hopeless_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many errors, or too many lines."""
    bad: Any = inspect(*[b"{"] * 500)
    assert len(bad.errors) == lines.MAX_ERRORS
    monkeypatch.setattr(lines, "MAX_LINES", 3)
    assert [e.code for e in inspect(*[line(f"{n}") for n in range(9)]).errors] == ["too_many_tasks"]
    assert inspect(*[line(f"{n}") for n in range(3)]).errors == []
