"""Query strings, read as structs. Lists come as `name[]=a&name[]=b` or `name=a&name=b`, nested as `name[field]=a`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from stoa.errors import InvalidRequest
from stoa.server.problems import undecodable
from stoa.tenancy.checks import MAX_TIME_S
from stoa.tenancy.pages import Cut

T = TypeVar("T")
Seconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)]


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of a list, by age."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "asc"

    def cut(self) -> Cut:
        return Cut(self.after, self.before, self.limit, self.order)


def query_reader(kind: type[T]) -> Callable[[Request], T]:
    """A function that reads a request's query string as `kind`. What does not fit is an InvalidRequest by name."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    lists = {field.encode_name for field in info.fields if _holds(field.type, inspect.ListType)}
    nested = {field.encode_name for field in info.fields if _holds(field.type, inspect.StructType)}

    def read(request: Request) -> T:
        said: dict[str, Any] = {}
        for key, value in request.query_params.multi_items():
            _put(said, key, value, lists, nested)
        try:
            return msgspec.convert(said, kind, strict=False)
        except msgspec.ValidationError as error:
            raise undecodable(error) from None

    return read


def _put(said: dict[str, Any], key: str, value: str, lists: set[str], nested: set[str]) -> None:
    if not value.isprintable():
        raise InvalidRequest(f"'{key}' holds characters that cannot be printed", param=key)
    name, bracket, field = key.partition("[")
    if bracket and field.endswith("]") and name in nested:
        said, name = _inside(said, name, key), field[:-1]
    elif key in (name, f"{name}[]") and name in lists:
        said.setdefault(name, []).append(value)
        return
    elif bracket:
        name = key  # known to nobody
    if name in said:
        raise InvalidRequest(f"'{key}' is given more than once", param=key)
    said[name] = value


def _inside(said: dict[str, Any], name: str, key: str) -> dict[str, Any]:
    found: object = said.setdefault(name, {})
    if not isinstance(found, dict):
        raise InvalidRequest(f"'{key}' is given more than once", param=key)
    return found


def _holds(kind: inspect.Type, wanted: type[inspect.Type]) -> bool:
    return any(
        isinstance(k, wanted) for k in (kind.types if isinstance(kind, inspect.UnionType) else (kind,))
    )
