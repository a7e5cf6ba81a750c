"""What administrators may say. Every refusal is an InvalidRequest that names the field and what is accepted."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from stoa.errors import Conflict, InvalidRequest

MAX_LIMIT = 10**12
MAX_NANOS = 10**18  # a thousand million dollars
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MAX_TIME_S = 253_402_300_799  # the end of the year 9999


class Keep(enum.Enum):
    """What an update does with a field that nobody spoke of. None means none."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


def check_name(name: object, param: str = "name") -> str:
    """Without the space around it."""
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= 256 or not name.isprintable():
        raise InvalidRequest(f"{param} must be 1 to 256 printable characters", param=param)
    return name.strip()


def check_count(value: object, param: str) -> int | None:
    """A limit: at least 1; None: no limit."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_LIMIT:
        raise InvalidRequest(f"{param} must be an integer from 1 to {MAX_LIMIT}, or null", param=param)
    return value


def check_nanos(value: object, param: str) -> int:
    """An amount of money: more than nothing."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_NANOS:
        raise InvalidRequest(
            f"{param} must be more than 0 and at most {MAX_NANOS // 10**9} dollars", param=param
        )
    return value


def check_weight(weight: object) -> float:
    fits = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not fits or not MIN_WEIGHT <= weight <= MAX_WEIGHT:  # type: ignore[operator]
        raise InvalidRequest(f"weight must be {MIN_WEIGHT:g} to {MAX_WEIGHT:g}", param="weight")
    return float(weight)  # type: ignore[arg-type]


def check_expiry(expires_at: object, now: int) -> int | None:
    """Unix seconds, in the future; None: never."""
    if expires_at is None:
        return None
    fits = isinstance(expires_at, int) and not isinstance(expires_at, bool)
    if not fits or not now < expires_at <= MAX_TIME_S:  # type: ignore[operator]
        raise InvalidRequest(f"expires_at must be Unix seconds after now ({now})", param="expires_at")
    return expires_at  # type: ignore[return-value]


def check_choice(value: object, accepted: Iterable[str], param: str) -> str:
    accepted = tuple(accepted)
    if not isinstance(value, str) or value not in accepted:
        raise InvalidRequest(f"{param} is {value!r}; accepted: {', '.join(accepted)}", param=param)
    return value


def check_url(url: object, param: str = "webhook_url") -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) and len(url) <= 2048 and url.isprintable() else "")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or " " in str(url):
        raise InvalidRequest(f"{param} must be an http or https URL of at most 2048 characters", param=param)
    return str(url)


def check_recipients(recipients: object) -> list[str]:
    """Addresses for mail: at most 50."""
    found: list[Any] = [None]
    if recipients is None or isinstance(recipients, list | tuple):
        found = list(recipients or ())
    if len(found) > 50 or not all(_is_address(r) for r in found):
        raise InvalidRequest("recipients must be at most 50 addresses, each NAME@HOST", param="recipients")
    return found


def check_prefix(prefix: object) -> str | None:
    if prefix is None:
        return None
    if not isinstance(prefix, str) or len(prefix) > 256 or not prefix.isprintable():
        raise InvalidRequest(
            "subject_prefix must be at most 256 printable characters", param="subject_prefix"
        )
    return prefix


def _is_address(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 254 or not value.isprintable() or " " in value:
        return False
    name, at, host = value.rpartition("@")
    return bool(name and at and host)


def check_version(seen: int | None, is_now: int) -> None:
    """An update that names the version it saw is refused if that is not the newest. Raises Conflict."""
    if seen is not None and seen != is_now:
        raise Conflict(
            f"version {seen} was changed meanwhile, it is {is_now} now; read it again", param="version"
        )
