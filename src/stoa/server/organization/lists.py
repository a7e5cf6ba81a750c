"""Lists of objects, and what is said of an object that is gone, as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import msgspec


class Identified(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T")


class ObjectList(msgspec.Struct, Generic[T], frozen=True):
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct, frozen=True):
    """`object`: of what it was, with ".deleted"."""

    id: str
    object: str
    deleted: bool = True


def ends(data: Sequence[Identified]) -> tuple[str | None, str | None]:
    """The ids of the first and the last."""
    return (data[0].id, data[-1].id) if data else (None, None)
