"""Usage records on disk while the database cannot take them.

<folder>/<id>.msgpack    records, whole or not at all: written beside, synced, renamed
<folder>/<id>.bad        a file that cannot be read, kept for a person to look at
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from stoa.economics.records import UsageRecord

log = structlog.get_logger("stoa.usage")


def write_spill(folder: Path, records: Sequence[UsageRecord]) -> Path:
    """A new file with all of `records`. On OSError (a full disk) there is no file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(12)}.msgpack"
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("xb") as file:
            file.write(_encode(records))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(folder)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return path


def list_spills(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.msgpack"))


def read_spill(path: Path) -> list[UsageRecord]:
    """Empty for a file that is gone (another process has replayed it) or cannot be read (it is put aside)."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=list[UsageRecord], strict=False)
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, ValueError) as error:
        log.error("a file of usage records is damaged", path=str(path), error=str(error))
        path.replace(path.with_suffix(".bad"))
        return []


def _encode(records: Sequence[UsageRecord]) -> bytes:
    """Whatever is in them: a number beyond 64 bits goes as its digits, which `read_spill` takes for a number, and
    what UTF-8 cannot say as escapes."""
    try:
        return msgspec.msgpack.encode(records)
    except (OverflowError, UnicodeError):
        plain = [{k: _plain(v) for k, v in msgspec.structs.asdict(record).items()} for record in records]
        return msgspec.msgpack.encode(plain)


def _plain(value: int | str | None) -> int | str | None:
    if isinstance(value, int):
        return value if value.bit_length() < 64 else str(value)
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
