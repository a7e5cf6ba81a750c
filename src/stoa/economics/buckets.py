"""Time in buckets of a minute, an hour or a day of UTC, and pages of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stoa.errors import InvalidRequest

Width = Literal["1m", "1h", "1d"]
WIDTHS_S: dict[str, int] = {"1m": 60, "1h": 3600, "1d": 86_400}
USAGE_LIMITS: dict[str, tuple[int, int]] = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}  # default, most
COST_LIMITS: dict[str, tuple[int, int]] = {"1d": (7, 180)}
_CURSOR = "page_"
_LATEST_S = 253_402_300_799


@dataclass(frozen=True)
class Page:
    """[start_s, end_s), to be shown in buckets that begin at multiples of `width_s`; the first and the last are cut
    to the range. `next_s`: where the next page begins, None at the end."""

    start_s: int
    end_s: int
    width_s: int
    next_s: int | None

    def buckets(self) -> list[tuple[int, int]]:
        """(start, end) of each, in order, without gap."""
        if self.start_s >= self.end_s:
            return []
        floors = range(self.start_s - self.start_s % self.width_s, self.end_s, self.width_s)
        return [(max(f, self.start_s), min(f + self.width_s, self.end_s)) for f in floors]


def page_of(
    limits: dict[str, tuple[int, int]],
    now_s: int,
    *,
    start_time: int,
    end_time: int | None = None,
    bucket_width: str = "1d",
    limit: int | None = None,
    page: str | None = None,
) -> Page:
    """The buckets that a query asks for. Raises InvalidRequest."""
    if bucket_width not in limits:
        raise InvalidRequest(
            f"bucket_width is {bucket_width!r}; accepted: {', '.join(limits)}", param="bucket_width"
        )
    usual, most = limits[bucket_width]
    count = usual if limit is None else limit
    if not 1 <= count <= most:
        raise InvalidRequest(
            f"limit is {count}; accepted: 1 to {most} for buckets of {bucket_width}", param="limit"
        )
    end_s = max(now_s + 1, start_time) if end_time is None else end_time
    if not 0 <= start_time <= _LATEST_S:
        raise InvalidRequest(f"start_time is {start_time}; accepted: Unix seconds", param="start_time")
    if end_time is not None and not start_time < end_time <= _LATEST_S:
        raise InvalidRequest("end_time is not later than start_time", param="end_time")
    width_s = WIDTHS_S[bucket_width]
    start_s = start_time if page is None else _from_cursor(page, start_time, end_s, width_s)
    stop_s = start_s - start_s % width_s + count * width_s
    return Page(start_s, min(stop_s, end_s), width_s, stop_s if stop_s < end_s else None)


def page_json(page: Page, results: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """OpenAI's page object. `results`: by the time that a bucket's whole width begins."""
    data = [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": end,
            "results": results.get(start - start % page.width_s, []),
        }
        for start, end in page.buckets()
    ]
    cursor = None if page.next_s is None else f"{_CURSOR}{page.next_s:x}"
    return {"object": "page", "data": data, "has_more": cursor is not None, "next_page": cursor}


def _from_cursor(text: str, start_s: int, end_s: int, width_s: int) -> int:
    try:
        found = int(text.removeprefix(_CURSOR), 16)
    except ValueError:
        found = -1
    if not text.startswith(_CURSOR) or found % width_s or not start_s <= found < max(end_s, start_s + 1):
        raise InvalidRequest("page is not the next_page of a query like this one", param="page")
    return found
