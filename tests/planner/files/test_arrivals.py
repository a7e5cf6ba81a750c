"""Requests from traces and from records of usage."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from stoa.economics.export import columns, import_arrow
from stoa.errors import InvalidTrace
from stoa.planner.files.arrivals import Labels, is_usage, read_trace, read_usage

BERLIN = ZoneInfo("Europe/Berlin")


def names(labels: Labels) -> list[str]:
    return [labels.name(code) for code in labels.codes.tolist()]


def usage(*rows: tuple[int, str, str, str, str, int, int]) -> list[dict[str, object]]:
    """(time, project, model, adapter, class, prompt, output) each, in the columns of Stoa's export."""
    keys = (
        "created_at_s",
        "project_id",
        "model",
        "adapter",
        "service_class",
        "prompt_tokens",
        "completion_tokens",
    )
    return [dict.fromkeys(columns("usage"), "0") | dict(zip(keys, row, strict=True)) for row in rows]


ROWS = usage(
    (1_714_968_060, "p", "m", "", "interactive", 10, 4),
    (1_714_968_000, "q", "m", "a", "batch", 20, 0),
    (1_714_968_030, "q", "m", "", "interactive", 0, 0),
)


def test_dates_of_a_trace_are_kept(tmp_path: Path) -> None:
    """A date without a zone is in the zone that is stated, on its clock; one with a zone says itself."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(
        gzip.compress(
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
            b"2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,9\n"
        )
    )
    assert not is_usage(path)
    found = read_trace(path, BERLIN)
    assert found.start is not None
    assert (found.start.at, found.start.wall) == (datetime(2023, 11, 16, 18, 15, 46, 680590, BERLIN), True)
    assert found.arrival_s.tolist() == [0.0, pytest.approx(4.314579)]
    path = tmp_path / "zoned.csv"
    path.write_text("arrival,prompt_tokens,output_tokens,project\n2023-11-16T18:15:46+01:00,1,2,p\n")
    found = read_trace(path, BERLIN)
    assert found.start is not None
    assert (found.start.at, found.start.wall) == (datetime(2023, 11, 16, 17, 15, 46, tzinfo=UTC), False)
    assert names(found.project) == ["p"]


def test_seconds_have_no_date(tmp_path: Path) -> None:
    """In CSV and in JSON lines."""
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n5,1,2\n")
    assert read_trace(path, BERLIN).start is None
    path.write_text('{"timestamp": 1500, "input_length": 6758, "output_length": 500}\n')
    assert read_trace(path, BERLIN).start is None


def test_records_of_usage_are_requests(tmp_path: Path) -> None:
    """In order of time; those that used nothing were refused, and are left out."""
    path = tmp_path / "usage.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns("usage"))
        writer.writeheader()
        writer.writerows(ROWS)
    _check_usage(path)


def test_records_of_usage_may_be_parquet(tmp_path: Path) -> None:
    """With the same columns."""
    arrow, parquet = import_arrow()
    path = tmp_path / "usage.parquet"
    parquet.write_table(arrow.table({key: [row[key] for row in ROWS] for key in ROWS[0]}), path)
    _check_usage(path)


def _check_usage(path: Path) -> None:
    assert is_usage(path)
    found = read_usage(path)
    assert found.start is not None
    assert found.start.at == datetime.fromtimestamp(1_714_968_000, UTC)
    assert found.arrival_s.tolist() == [0.0, 60.0]
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([20, 10], [0, 4])
    assert (names(found.project), names(found.adapter)) == (["q", "p"], ["a", ""])
    assert (names(found.service_class), names(found.model)) == (["batch", "interactive"], ["m", "m"])


def test_a_trace_may_be_parquet(tmp_path: Path) -> None:
    """In any order, with seconds or timestamps, and columns under any of their names."""
    arrow, parquet = import_arrow()
    path = tmp_path / "trace.parquet"
    table = {
        "arrival": [2.0, 1.0],
        "ContextTokens": [20, 10],
        "output_length": [2, 1],
        "project": ["b", None],
    }
    parquet.write_table(arrow.table(table), path)
    found = read_trace(path, BERLIN)
    assert (found.arrival_s.tolist(), found.prompt_tokens.tolist()) == ([1.0, 2.0], [10, 20])
    assert (names(found.project), found.start) == (["", "b"], None)
    times = [datetime(2024, 7, 1, 12, tzinfo=UTC), datetime(2024, 7, 1, 11, tzinfo=UTC)]
    parquet.write_table(arrow.table(table | {"arrival": times}), path)
    found = read_trace(path, BERLIN)
    assert found.arrival_s.tolist() == [0.0, 3600.0]
    assert found.start is not None
    assert found.start.at == times[1]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"prompt_tokens": [1], "output_tokens": [1]}, "no column arrival_s/arrival"),
        ({"arrival_s": [1.0], "prompt_tokens": [0], "output_tokens": [1]}, "row 1: prompt_tokens is 0"),
        ({"arrival_s": [1.0], "prompt_tokens": [None], "output_tokens": [1]}, "row 1: prompt_tokens is None"),
        (
            {"arrival_s": ["soon"], "prompt_tokens": [1], "output_tokens": [1]},
            "accepted: a number of seconds",
        ),
        ({"arrival_s": [-1.0], "prompt_tokens": [1], "output_tokens": [1]}, "accepted: seconds from 0"),
    ],
)
def test_a_wrong_parquet_trace_is_refused(tmp_path: Path, table: dict[str, list[object]], says: str) -> None:
    """File, column and row are named."""
    arrow, parquet = import_arrow()
    path = tmp_path / "trace.parquet"
    parquet.write_table(arrow.table(table), path)
    with pytest.raises(InvalidTrace, match=says):
        read_trace(path, BERLIN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column created_at_s, project_id"),
        (
            "created_at_s,project_id,model,adapter,service_class,prompt_tokens,completion_tokens\n",
            "no requests",
        ),
        (
            "created_at_s,project_id,model,adapter,service_class,prompt_tokens,completion_tokens\n1,p,m,,batch,x,1\n",
            "row 1: prompt_tokens is 'x'",
        ),
        (
            "created_at_s,project_id,model,adapter,service_class,prompt_tokens,completion_tokens\n1,p\n",
            "too few fields",
        ),
    ],
)
def test_wrong_records_are_refused(tmp_path: Path, text: str, says: str) -> None:
    """With what is missing, and where."""
    path = tmp_path / "usage.csv"
    path.write_text(text)
    with pytest.raises(InvalidTrace, match=says):
        read_usage(path)
    with pytest.raises(InvalidTrace, match="No such file"):
        read_usage(tmp_path / "missing.csv")
