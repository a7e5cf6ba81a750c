"""Requests that came: a trace (CSV, JSON lines, Parquet), or Stoa's own export of usage (CSV, Parquet)."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from stoa.economics.export import import_arrow
from stoa.errors import InvalidTrace
from stoa.planner.files.clock import Start
from stoa.planner.prices.rows import read_header
from stoa.simulator.traces import LATEST_S, load_requests

Floats = NDArray[np.float64]
Numbers = NDArray[np.int32]
_TIME = ("arrival_s", "arrival", "timestamp", "arrived_at")
_PARQUET = {
    "prompt_tokens": ("prompt_tokens", "contexttokens", "input_length", "num_prefill_tokens"),
    "output_tokens": ("output_tokens", "generatedtokens", "output_length", "num_decode_tokens"),
    "project": ("project",),
    "adapter": ("adapter",),
}
_USAGE = (
    "created_at_s",
    "project_id",
    "model",
    "adapter",
    "service_class",
    "prompt_tokens",
    "completion_tokens",
)
_LONGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of names, as numbers of `names`; -1: none."""

    codes: Numbers
    names: Sequence[str]

    @staticmethod
    def none(count: int) -> Labels:
        return Labels(np.full(count, -1, np.int32), ())

    def name(self, code: int) -> str:
        return self.names[code] if code >= 0 else ""

    def part(self, which: Any) -> Labels:
        return Labels(self.codes[which], self.names)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in order of arrival. `start`: the moment of second 0; None: the file has no dates."""

    arrival_s: Floats
    prompt_tokens: Numbers
    output_tokens: Numbers
    project: Labels
    adapter: Labels
    model: Labels
    service_class: Labels
    start: Start | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, which: Any) -> Arrivals:
        """Those that a slice, mask or list of numbers picks."""
        return Arrivals(
            self.arrival_s[which],
            self.prompt_tokens[which],
            self.output_tokens[which],
            self.project.part(which),
            self.adapter.part(which),
            self.model.part(which),
            self.service_class.part(which),
            self.start,
        )


def is_usage(path: Path) -> bool:
    """Whether it is Stoa's own export of usage, by its columns."""
    if _is_parquet(path):
        return "completion_tokens" in _table(path).column_names
    return path.name.endswith((".csv", ".csv.gz")) and "completion_tokens" in read_header(path)


def read_trace(path: Path, zone: ZoneInfo, *, sort: bool = False) -> Arrivals:
    """As `stoa simulate` reads it, or Parquet with the same columns. `zone`: of dates that name none. InvalidTrace says what
    is wrong, and in which line."""
    if _is_parquet(path):
        return _from_parquet(path, zone)
    requests = load_requests(path, sort=sort)
    none = Labels.none(len(requests))
    project, adapter = (
        none if codes is None else Labels(codes, requests.names)
        for codes in (requests.project, requests.adapter)
    )
    return Arrivals(
        requests.arrival_s,
        requests.prompt_tokens,
        requests.output_tokens,
        project,
        adapter,
        none,
        none,
        _first_date(path, zone),
    )


def read_usage(path: Path) -> Arrivals:
    """Stoa's own records of usage. Requests that used nothing (they were refused) are left out."""
    columns = _parquet_columns(path, _USAGE) if _is_parquet(path) else _csv_columns(path, _USAGE)
    created_s = _whole(path, "created_at_s", columns["created_at_s"], 2**53)
    prompt = _whole(path, "prompt_tokens", columns["prompt_tokens"], _LONGEST)
    output = _whole(path, "completion_tokens", columns["completion_tokens"], _LONGEST)
    kept = np.flatnonzero(prompt > 0)
    kept = kept[np.argsort(created_s[kept], kind="stable")]
    if not kept.size:
        raise InvalidTrace(f"{path}: there are no requests in it")
    first_s = created_s[kept[0]]
    project, adapter, model, service_class = (
        _labelled(columns[name]).part(kept) for name in ("project_id", "adapter", "model", "service_class")
    )
    return Arrivals(
        created_s[kept] - first_s,
        prompt[kept].astype(np.int32),
        output[kept].astype(np.int32),
        project,
        adapter,
        model,
        service_class,
        Start(datetime.fromtimestamp(first_s, UTC)),
    )


# -- dates


def _first_date(path: Path, zone: ZoneInfo) -> Start | None:
    """The date of a CSV file's first line, which is second 0 to the reader of traces."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = gzip.GzipFile(fileobj=raw) if packed else raw
        header, first = (next(csv.reader([lines.readline().decode("utf-8-sig")]), []) for _ in range(2))
    known = {name.strip().lower(): i for i, name in reversed(list(enumerate(header)))}
    column = next((known[name] for name in _TIME if name in known), None)
    return None if column is None or len(first) <= column else _dated(first[column], zone)


def _dated(text: str, zone: ZoneInfo) -> Start | None:
    """None: it is no date but a number of seconds."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return Start(at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=zone), wall=at.tzinfo is None)


# -- columns


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise InvalidTrace(f"{path}: {error.strerror}") from None


def _csv_columns(path: Path, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text))
        header = [name.strip().lower() for name in next(rows, [])]
        places = [header.index(name) for name in _all(path, names, header)]
        found = [row for row in rows if row]
        return {name: [row[i] for row in found] for name, i in zip(names, places, strict=True)}
    except IndexError:
        raise InvalidTrace(f"{path}: some lines have too few fields") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidTrace(f"{path}: {error}") from None


def _parquet_columns(path: Path, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    table = _table(path)
    return {name: table.column(name).to_pylist() for name in _all(path, names, table.column_names)}


def _all(path: Path, names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    missing = [name for name in names if name not in known]
    if missing:
        raise InvalidTrace(f"{path}: no column {', '.join(missing)}; accepted: {', '.join(names)}")
    return names


def _table(path: Path) -> Any:
    arrow, parquet = import_arrow()
    try:
        return parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise InvalidTrace(f"{path}: {error}") from None


def _from_parquet(path: Path, zone: ZoneInfo) -> Arrivals:
    table = _table(path)
    known = {name.lower(): name for name in table.column_names}
    time_name = _first_of(path, known, _TIME)
    prompt, output = (
        _whole(
            path, name, table.column(_first_of(path, known, _PARQUET[name])).to_pylist(), _LONGEST, least=1
        )
        for name in ("prompt_tokens", "output_tokens")
    )
    arrival_s, start = _times(path, time_name, table.column(time_name), zone)
    order = np.argsort(arrival_s, kind="stable")
    project, adapter = (
        _labelled(table.column(known[name]).to_pylist()) if name in known else Labels.none(len(order))
        for name in ("project", "adapter")
    )
    none = Labels.none(len(order))
    if not order.size:
        raise InvalidTrace(f"{path}: there are no requests in it")
    if not (arrival_s[order[0]] >= 0 and arrival_s[order[-1]] <= LATEST_S):
        raise InvalidTrace(f"{path}: {time_name}: accepted: seconds from 0 to {LATEST_S:.0f}, or timestamps")
    return Arrivals(
        arrival_s, prompt.astype(np.int32), output.astype(np.int32), project, adapter, none, none, start
    ).part(order)


def _times(path: Path, name: str, column: Any, zone: ZoneInfo) -> tuple[Floats, Start | None]:
    values = column.to_pylist()
    if values and all(isinstance(v, datetime) for v in values):
        first = min(values)
        start = Start(
            first.astimezone(UTC) if first.tzinfo else first.replace(tzinfo=zone), wall=first.tzinfo is None
        )
        return np.array([(v - first).total_seconds() for v in values]), start
    try:
        found = np.array([math.nan if v is None else float(v) for v in values], np.float64)
    except (TypeError, ValueError):
        found = np.array([math.nan])
    if not np.isfinite(found).all():
        raise InvalidTrace(f"{path}: {name}: accepted: a number of seconds, or a timestamp, in every row")
    return found, None


def _first_of(path: Path, known: Mapping[str, str], names: Iterable[str]) -> str:
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise InvalidTrace(f"{path}: no column {'/'.join(names)}; there is {', '.join(known) or 'none'}")
    return found


def _whole(path: Path, name: str, values: Sequence[Any], most: int, least: int = 0) -> Floats:
    """Whole numbers as floats, all of them exact."""
    found = np.array([_number(v) for v in values], np.float64)
    bad = np.flatnonzero(~((found >= least) & (found <= most) & (found == np.floor(found))))
    if bad.size:
        row = int(bad[0])
        raise InvalidTrace(
            f"{path}, row {row + 1}: {name} is {values[row]!r}; accepted: a whole number from {least} to {most}"
        )
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _labelled(values: Sequence[Any]) -> Labels:
    names = sorted({str(v) for v in values if v not in (None, "")})
    number = {name: i for i, name in enumerate(names)}
    return Labels(np.array([number.get(str(v), -1) if v else -1 for v in values], np.int32), names)
