"""What a batch is, for those who read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from stoa.batches.tables import BatchRow

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class LineError(msgspec.Struct, frozen=True):
    """Why an input file was not taken. `line` counts from 1; None: it is about the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Batch:
    """Times are Unix seconds; `times` has those of the states it has been in. `errors`: of a batch that failed."""

    id: str
    project_id: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    metadata: Mapping[str, str] | None
    model: str | None
    errors: tuple[LineError, ...]
    output_file_id: str | None
    error_file_id: str | None
    output_expires_after_s: int | None
    created_at: int
    expires_at: int
    times: Mapping[str, int]
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


_TIMES: tuple[Status, ...] = (
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
)
_SAME = (
    "id",
    "project_id",
    "key_id",
    "endpoint",
    "input_file_id",
    "completion_window",
    "status",
    "model",
    "output_file_id",
    "error_file_id",
    "output_expires_after_s",
    "created_at",
    "expires_at",
    "total",
    "completed",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
)


def batch_of(row: BatchRow) -> Batch:
    times: dict[str, int] = {name: at for name in _TIMES if (at := getattr(row, f"{name}_at")) is not None}
    errors = tuple(LineError(**error) for error in row.errors or ())
    same = {name: getattr(row, name) for name in _SAME}
    return Batch(metadata=row.labels, errors=errors, times=times, **same)


def enter(row: BatchRow, status: Status, now: int) -> None:
    """The batch is in that state from now on."""
    row.status = status
    setattr(row, f"{status}_at", now)
