"""What happens to every request: an id, a look at its key, a line in the log, no bare traceback."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoa.errors import NotFound, PermissionDenied, StoaError
from stoa.server.problems import problem
from stoa.server.service import Authenticator
from stoa.tenancy.principal import Principal

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLIENT_CLOSED = 499  # nginx's number for a client that left
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
log = structlog.get_logger("stoa.http")


def note(request: Request, **facts: Any) -> None:
    """Adds facts to the request's line in the log."""
    request.scope.setdefault("stoa.facts", {}).update(facts)


def principal_of(request: Request) -> Principal:
    """Who asks."""
    return request.scope["stoa.principal"]  # type: ignore[no-any-return]


def project_of(request: Request, scope: str) -> str:
    """The project that asks. Raises PermissionDenied if there is none, or the key lacks `scope`."""
    principal = principal_of(request)
    if principal.project_id is None or not principal.may(scope):
        raise PermissionDenied(f"this takes a project's key with the scope {scope}")
    return principal.project_id


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, authority: Authenticator) -> None:
        self._app = app
        self._authority = authority

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _SANE_ID.fullmatch(sent_id) else f"req_{secrets.token_hex(16)}"
        facts: dict[str, Any] = scope.setdefault("stoa.facts", {})
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            if not scope["path"].isprintable():
                raise NotFound("No such object: the URL holds characters that cannot be printed")
            if scope["path"].startswith("/v1/"):
                principal = scope.get("stoa.principal")  # it is known where the request began in here
                if principal is None:
                    scope["stoa.principal"] = principal = await self._authority.authenticate(_secret(scope))
                    if principal.key_id is None and principal.is_admin:
                        _check_local(Headers(scope=scope))
                facts.update(project=principal.project_id, key=principal.key_id)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            facts["client_left"] = True
        except Exception as error:
            if not isinstance(error, StoaError):
                log.exception("unexpected error", request_id=request_id, path=scope["path"])
                error = StoaError(f"The server had an error; its log names it under {request_id}")
            if status:
                raise  # too late for an answer: the connection must break, or it would look complete
            await problem(error)(scope, receive, send_with_id)
        finally:
            self._log(scope, status, request_id, time.perf_counter() - started, facts)

    def _log(self, scope: Scope, status: int, request_id: str, seconds: float, facts: dict[str, Any]) -> None:
        write = log.debug if scope["path"] in _QUIET and status < 400 else log.info
        write(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status or _CLIENT_CLOSED,
            ms=round(seconds * 1000, 1),
            request_id=request_id,
            **facts,
        )


def _check_local(headers: Headers) -> None:
    """Without keys this host alone is trusted: a web page of another one must not speak through a browser here.
    Raises PermissionDenied."""
    said = {"Host": f"http://{headers.get('host', '')}", "Origin": headers.get("origin", "http://localhost")}
    for name, url in said.items():
        if not _is_local(url):
            raise PermissionDenied(f"{name} {url[:100]!r} is not this host; make a key to serve others")


def _is_local(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # no URL
        return False


def is_loopback(host: str) -> bool:
    """Is it a name or an address of this machine alone?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(scope: Scope) -> str | None:
    """What stands behind "Bearer"; None if nothing does."""
    scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        return None
    return (
        secret.strip().encode("latin-1").decode("utf-8", "replace")
    )  # headers are bytes, keys may be any text
