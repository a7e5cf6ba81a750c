"""Who may ask for what under /v1/organization, and how an answer travels back.

Every resource is a file with a table of `Endpoint`s. Routes and the API's description are made from the tables, and
the permission is checked in one place, before anything of the request is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stoa.errors import InvalidRequest, NotFound, PermissionDenied
from stoa.server.edge import principal_of
from stoa.server.wire import json_response
from stoa.storage.database import Database
from stoa.tenancy.checks import KEEP, Keep
from stoa.tenancy.office import Office
from stoa.tenancy.principal import Principal

T = TypeVar("T")
_VERSION = re.compile(r'(?:W/)?"(\d{1,18})"|(\d{1,18})')


class Administered(Protocol):
    """Implemented by `server.service.Service` and the tests' fake. Without an office there is nothing to ask."""

    @property
    def office(self) -> Office | None: ...

    @property
    def database(self) -> Database | None: ...

    @property
    def max_body_bytes(self) -> int: ...


@dataclass(frozen=True)
class Ask:
    """A request that may be answered. `actor`: who it is from, for the audit log. `project_id`: None for
    administrators; else a project's key asks, and is told of that project only."""

    request: Request
    office: Office
    database: Database
    max_body_bytes: int
    clock: Callable[[], float]
    organization_id: str
    project_id: str | None
    actor: str

    def now(self) -> int:
        return int(self.clock())

    def id(self, name: str) -> str:
        """The id of that name in the path. Raises NotFound for what cannot be one."""
        found: str = self.request.path_params[name]
        if len(found) > 256 or not found.isprintable():
            raise NotFound(f"{name} names nothing", param=name)
        return found

    def of_project(self) -> str | None:
        """The project of the path; None: the path is the organization's own."""
        return self.id("project_id") if "project_id" in self.request.path_params else None

    def version(self, said: int | None = None) -> int | None:
        """The version that the caller saw last: from If-Match, or `said` in the body. Raises InvalidRequest."""
        header = self.request.headers.get("if-match", "*").strip()
        if header == "*":
            return said
        if (match := _VERSION.fullmatch(header)) is None:
            raise InvalidRequest("If-Match must be a version, as in ETag", param="If-Match")
        version = int(match[1] or match[2])
        if said is not None and said != version:
            raise InvalidRequest("If-Match and version contradict each other", param="version")
        return version

    def expiry(self, expires_in_s: int | None) -> int | None:
        """Unix seconds."""
        return None if expires_in_s is None else self.now() + expires_in_s


@dataclass(frozen=True)
class Endpoint:
    """One method of one path. `body`, `query` and `answer` are structs; `answer` alone may be a dict of its form.
    `scope`: a project's key that has it may ask too."""

    method: str
    path: str
    summary: str
    handler: Callable[[Ask], Awaitable[Any]]
    answer: type[Any]
    body: type[Any] | None = None
    query: type[Any] | None = None
    scope: str | None = None


def make_routes(
    endpoints: Sequence[Endpoint], service: Administered, clock: Callable[[], float]
) -> list[Route]:
    """One route per path, so that a wrong method is answered with all the right ones; none without an office."""
    office, database = service.office, service.database
    if office is None or database is None:
        return []

    def ask(request: Request, scope: str | None) -> Ask:
        principal = principal_of(request)
        return Ask(
            request=request,
            office=office,
            database=database,
            max_body_bytes=service.max_body_bytes,
            clock=clock,
            organization_id=principal.organization_id,
            project_id=_confined(principal, scope),
            actor=principal.key_id or "anonymous",
        )

    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.upper()] = endpoint
    return [_route(path, methods, ask) for path, methods in paths.items()]


def kept(value: T | msgspec.UnsetType) -> T | Keep:
    """What a body leaves out stays as it is."""
    return KEEP if isinstance(value, msgspec.UnsetType) else value


def _route(path: str, methods: dict[str, Endpoint], make_ask: Callable[[Request, str | None], Ask]) -> Route:
    async def answer(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        found = await endpoint.handler(make_ask(request, endpoint.scope))
        version = getattr(found, "version", None)
        return json_response(found, headers=None if version is None else {"ETag": f'"{version}"'})

    return Route(path, answer, methods=list(methods))


def _confined(principal: Principal, scope: str | None) -> str | None:
    """None for administrators, the project of others who may ask. Raises PermissionDenied."""
    if principal.is_admin:
        return None
    if scope is None:
        raise PermissionDenied("this takes an admin key")
    if principal.project_id is None or not principal.may(scope):
        raise PermissionDenied(f"this takes an admin key, or a project's key with the scope {scope}")
    return principal.project_id
