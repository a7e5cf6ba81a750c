"""Requests of a trace, read in chunks so that a month needs no more memory than an hour."""

from __future__ import annotations

import csv
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stoa.errors import InvalidTrace

Floats = NDArray[np.float64]
Numbers = NDArray[np.int32]
CHUNK = 1 << 13
_LONGEST = 2**31 - 1
LATEST_S = 315_576_000.0  # ten years: what is later is an error of the file
_COLUMNS = {
    "arrival_s": ("arrival_s", "arrival", "timestamp", "arrived_at"),
    "prompt_tokens": ("prompt_tokens", "contexttokens", "input_length", "num_prefill_tokens"),
    "output_tokens": ("output_tokens", "generatedtokens", "output_length", "num_decode_tokens"),
    "project": ("project",),
    "adapter": ("adapter",),
}


@dataclass(frozen=True, slots=True)
class Requests:
    """In order of arrival. Projects and adapters are numbers of `names`, or None where the trace has no such column;
    adapter -1: none."""

    arrival_s: Floats
    prompt_tokens: Numbers
    output_tokens: Numbers
    project: Numbers | None = None
    adapter: Numbers | None = None
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, which: Any) -> Requests:
        """Those that a slice, mask or list of numbers picks."""
        return Requests(
            self.arrival_s[which],
            self.prompt_tokens[which],
            self.output_tokens[which],
            None if self.project is None else self.project[which],
            None if self.adapter is None else self.adapter[which],
            self.names,
        )


def read_requests(path: Path | str, *, sort: bool = False, chunk: int = CHUNK) -> Iterator[Requests]:
    """Chunks of a CSV file with a header, or of JSON lines (`timestamp` in milliseconds, `input_length`,
    `output_length`), either plain or .gz. Arrivals are seconds, or dates whose first one is second 0.

    InvalidTrace for a line that is malformed, has a negative or non-finite time, no tokens, or comes before the line
    above it; `sort` reads the whole file and puts lines in order instead."""
    chunks = _checked(Path(path), chunk, ordered=not sort)
    return iter([_sorted(join(chunks))]) if sort else chunks


def load_requests(path: Path | str, *, sort: bool = False) -> Requests:
    """The whole trace at once."""
    return join(read_requests(path, sort=sort))


def join(chunks: Iterable[Requests]) -> Requests:
    parts = list(chunks)
    if not parts:
        return Requests(np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32))
    if len(parts) == 1:
        return parts[0]
    return Requests(
        np.concatenate([p.arrival_s for p in parts]),
        np.concatenate([p.prompt_tokens for p in parts]),
        np.concatenate([p.output_tokens for p in parts]),
        _join_numbers([p.project for p in parts], [len(p) for p in parts]),
        _join_numbers([p.adapter for p in parts], [len(p) for p in parts]),
        max((p.names for p in parts), key=len),
    )


def _join_numbers(columns: list[Numbers | None], lengths: list[int]) -> Numbers | None:
    if all(column is None for column in columns):
        return None
    each = zip(columns, lengths, strict=True)
    return np.concatenate([np.full(n, -1, np.int32) if c is None else c for c, n in each])


def _sorted(requests: Requests) -> Requests:
    return requests.part(np.argsort(requests.arrival_s, kind="stable"))


# -- lines


@contextmanager
def _open(path: Path) -> Iterator[io.TextIOBase]:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise InvalidTrace(f"{path}: {error.strerror}") from None
    with raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, "utf-8-sig", newline="")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some lines of a file: their numbers, and the fields of `_COLUMNS`; None: the file has no such column."""

    lines: list[int]
    fields: Sequence[Sequence[Any] | None]


def _batches(path: Path, chunk: int) -> Iterator[_Batch]:
    with _open(path) as file:
        first = file.readline()
        if first.lstrip().startswith("{"):
            yield from _json_batches(path, first, file, chunk)
        else:
            yield from _csv_batches(path, next(csv.reader([first]), []), csv.reader(file), chunk)


def _csv_batches(path: Path, header: list[str], reader: Any, chunk: int) -> Iterator[_Batch]:
    places = _places(path, header)
    while batch := [(reader.line_num + 1, row) for row in islice(reader, chunk)]:
        rows = [row for _, row in batch if row]
        lines = [line for line, row in batch if row]
        try:
            fields = [None if i is None else [row[i] for row in rows] for i in places]
        except IndexError:
            least = max(i for i in places if i is not None)
            line, row = next((n, row) for n, row in batch if row and len(row) <= least)
            raise InvalidTrace(f"{path}, line {line}: {len(row)} fields are too few") from None
        if rows:
            yield _Batch(lines, fields)


def _places(path: Path, header: list[str]) -> list[int | None]:
    """Where each of `_COLUMNS` stands."""
    known = {name.strip().lower(): i for i, name in reversed(list(enumerate(header)))}
    places = [next((known[a] for a in aliases if a in known), None) for aliases in _COLUMNS.values()]
    missing = [name for name, place in zip(_COLUMNS, places[:3], strict=False) if place is None]
    if missing:
        raise InvalidTrace(
            f"{path}, line 1: no column {', '.join(missing)}; accepted: a CSV header with "
            + ", ".join("/".join(_COLUMNS[name]) for name in missing)
        )
    return places


class _Line(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    project: str = ""
    adapter: str = ""


def _json_batches(path: Path, first: str, file: Iterable[str], chunk: int) -> Iterator[_Batch]:
    decoder = msgspec.json.Decoder(_Line)
    texts = ((n, text) for n, text in enumerate(chain([first], file), 1) if text.strip())
    while batch := list(islice(texts, chunk)):
        found = []
        for number, text in batch:
            try:
                line = decoder.decode(text)
            except msgspec.MsgspecError as error:
                raise InvalidTrace(f"{path}, line {number}: {error}") from None
            found.append(
                (line.timestamp / 1000, line.input_length, line.output_length, line.project, line.adapter)
            )
        *numbers, projects, adapters = zip(*found, strict=True)
        names = [column if any(column) else None for column in (projects, adapters)]
        yield _Batch([number for number, _ in batch], [*numbers, *names])


# -- chunks


def _checked(path: Path, chunk: int, *, ordered: bool) -> Iterator[Requests]:
    names: dict[str, int] = {}
    zero: np.datetime64 | None = None
    last_s = 0.0 if ordered else -math.inf
    empty = True
    try:
        for batch in _batches(path, chunk):
            lines, (arrival, prompt, output, project, adapter) = batch.lines, batch.fields
            assert arrival is not None
            if empty and not _is_number(arrival[0]):
                zero = _date(path, lines[0], arrival[0])
            empty = False
            arrival_s = _times(path, lines, arrival, zero)
            _check_times(path, lines, arrival_s, last_s)
            last_s = float(arrival_s[-1]) if ordered else last_s
            yield Requests(
                arrival_s,
                _counts(path, lines, prompt, "prompt_tokens"),
                _counts(path, lines, output, "output_tokens"),
                _numbered(project, names),
                _numbered(adapter, names),
                list(names),
            )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InvalidTrace(f"{path}: {error}") from None
    if empty:
        raise InvalidTrace(f"{path}: there are no requests in it")


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _date(path: Path, line: int, text: str) -> np.datetime64:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a zone in the text is a warning to numpy; all lines are read alike
            return np.datetime64(text, "ns")
    except ValueError:
        raise InvalidTrace(f"{path}, line {line}: {text!r} is neither seconds nor a date") from None


def _times(path: Path, lines: Sequence[int], texts: Sequence[Any], zero: np.datetime64 | None) -> Floats:
    try:
        if zero is None:
            return np.array(list(map(float, texts)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (np.array(texts, dtype="datetime64[ns]") - zero).astype(np.float64) / 1e9
    except ValueError:
        pass
    for line, text in zip(lines, texts, strict=True):
        if zero is not None:
            _date(path, line, text)
        elif not _is_number(text):
            raise InvalidTrace(f"{path}, line {line}: {text!r} is not a time in seconds")
    raise InvalidTrace(f"{path}, lines {lines[0]}-{lines[-1]}: not all times are alike")


def _check_times(path: Path, lines: Sequence[int], arrival_s: Floats, last_s: float) -> None:
    """`last_s`: of the chunk before; -inf: order does not matter."""
    bad = np.flatnonzero(~((arrival_s >= 0) & (arrival_s <= LATEST_S)))
    if bad.size:
        i = int(bad[0])
        raise InvalidTrace(
            f"{path}, line {lines[i]}: arrival at {arrival_s[i]} s; accepted: 0 to {LATEST_S:.0f} (ten years)"
        )
    if last_s == -math.inf:
        return
    back = np.flatnonzero(np.diff(arrival_s, prepend=last_s) < 0)
    if back.size:
        i = int(back[0])
        raise InvalidTrace(
            f"{path}, line {lines[i]}: arrival at {arrival_s[i]:.3f} s, before the line above; "
            "sort the file, or let it be sorted in memory (--sort)"
        )


def _counts(path: Path, lines: Sequence[int], texts: Sequence[Any] | None, name: str) -> Numbers:
    assert texts is not None
    try:
        values = np.array(list(map(int, texts)), np.float64)
    except (ValueError, OverflowError):
        values = np.array([float(t) if _is_number(t) else math.nan for t in texts])
    bad = np.flatnonzero(~((values >= 1) & (values <= _LONGEST) & (values == np.floor(values))))
    if bad.size:
        i = int(bad[0])
        raise InvalidTrace(
            f"{path}, line {lines[i]}: {name} is {texts[i]!r}; accepted: a whole number from 1 to {_LONGEST}"
        )
    return values.astype(np.int32)


def _numbered(texts: Sequence[str] | None, names: dict[str, int]) -> Numbers | None:
    """Numbers of the texts in `names`, which grows; -1: none. None: the file has no such column."""
    if texts is None:
        return None
    for text in sorted(set(texts) - {""} - names.keys()):
        names[text] = len(names)
    known = {**names, "": -1}
    return np.array([known[text] for text in texts], np.int32)
