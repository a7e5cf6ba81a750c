"""CSV files line by line, and the numbers in them."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stoa.errors import ConfigError

_BLANK = {"", "nan", "none", "null", "n/a"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: cells by column, in lower case."""

    where: str  # file and line, for people
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """ "" for a blank cell, or one that the table has not."""
        return self.cells.get(column, "").strip()

    def usd(self, column: str) -> float | None:
        """A price; None: blank, not sold. ConfigError for zero, negative numbers and what is no number."""
        value = self.number(column)
        if value is not None and not 0 < value < 1e6:
            raise self.wrong(column, "a price above 0 in USD an hour; blank where it is not sold")
        return value

    def number(self, column: str) -> float | None:
        text = self.text(column)
        if text.lower() in _BLANK:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.wrong(column, "a number, or blank")
        return value

    def wrong(self, column: str, accepted: str) -> ConfigError:
        found = self.text(column)[:80]
        return ConfigError(f"{self.where}: {column} is {found!r}; accepted: {accepted}", param=column)


def read_rows(path: Path, needed: Sequence[str], *, param: str = "prices") -> Iterator[Row]:
    """Rows of a CSV file with a header, plain or .gz. ConfigError for files that cannot be read, without these columns, or
    with lines of another length."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig")))
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise ConfigError(
                f"{path}, line 1: no column {', '.join(missing)}; accepted: a CSV header with {', '.join(needed)}",
                param=param,
            )
        for line in reader:
            if line and len(line) != len(header):
                raise ConfigError(
                    f"{path}, line {reader.line_num}: {len(line)} fields instead of {len(header)}",
                    param=param,
                )
            if line:
                yield Row(f"{path}, line {reader.line_num}", dict(zip(header, line, strict=True)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", param=param) from None
    except (EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}", param=param) from None


def read_header(path: Path) -> tuple[str, ...]:
    """Names of the columns, in lower case; none for an empty file. ConfigError for a file that cannot be read."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            first = (gzip.GzipFile(fileobj=raw) if packed else raw).readline()
        return tuple(name.strip().lower() for name in next(csv.reader([first.decode("utf-8-sig")]), []))
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}", param="prices") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}", param="prices") from None
