"""Lists, a page at a time. The cursor is the id of a row: of the last one seen, or of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from stoa.errors import InvalidRequest

T = TypeVar("T")
Order = Literal["asc", "desc"]
MAX_PAGE = 100


@dataclass(frozen=True)
class Page(Generic[T]):
    """`has_more`: whether another page follows in the direction asked for."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True)
class Cut:
    """Which part of a list: `limit` rows after (or before) a row; by age, oldest first unless "desc"."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    order: Order = "asc"


FIRST = Cut()
NEWEST = Cut(order="desc")


async def page(
    session: AsyncSession,
    query: Select[Any],
    make: Callable[[Any], T],
    cut: Cut,
    *,
    where: Sequence[Any] = (),
    by: Sequence[str] = ("created_at", "id"),
) -> Page[T]:
    """`query` selects one class within its owner; `where`: what else its rows must fulfil, but not the row that a
    cursor names, which may be gone from the list by now. Raises InvalidRequest."""
    if not isinstance(cut.limit, int) or not 1 <= cut.limit <= MAX_PAGE:
        raise InvalidRequest(f"limit must be 1 to {MAX_PAGE}", param="limit")
    if cut.after is not None and cut.before is not None:
        raise InvalidRequest("after and before exclude each other", param="before")
    if cut.order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    table = query.column_descriptions[0]["entity"]
    columns = [getattr(table, name) for name in by]
    backwards = cut.before is not None
    descending = (cut.order == "desc") != backwards
    cursor = cut.before if backwards else cut.after
    if cursor is not None:
        row = await session.scalar(query.where(table.id == cursor))
        if row is None:
            param = "before" if backwards else "after"
            raise InvalidRequest(f"{param} names nothing in this list", param=param)
        key, edge = tuple_(*columns), tuple_(*(getattr(row, name) for name in by))
        query = query.where(key < edge if descending else key > edge)
    query = query.where(*where).order_by(*(c.desc() if descending else c.asc() for c in columns))
    rows = list(await session.scalars(query.limit(cut.limit + 1)))
    found = rows[: cut.limit]
    if backwards:
        found.reverse()
    return Page(tuple(map(make, found)), len(rows) > cut.limit)
