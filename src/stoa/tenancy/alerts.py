"""Budget alerts as signed HTTP calls to an address that a customer chose.

The address is not trusted: its name is resolved here, every answer must be a public address, and the call goes to
the very address that was checked, without redirects or proxies.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec
import structlog

from stoa.errors import InvalidRequest

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port → addresses
Sleep = Callable[[float], Awaitable[None]]

SIGNATURE = "Stoa-Signature"
_TRIES = 3
_FIRST_WAIT_S = 1.0  # doubled after each try
_TIMEOUT_S = 10.0
_QUEUE_MAX = 1000
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
log = structlog.get_logger()


class Webhooks:
    """Sends in the background: `send` returns at once. Close it at the end."""

    def __init__(
        self,
        secret: str,
        *,
        clock: Callable[[], float],
        allow_private: bool = False,
        resolve: Resolve | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`secret` signs what is sent, see `signature`. `clock`: Unix time. `allow_private`: addresses of the own
        network are called too."""
        self._secret, self._clock, self._sleep = secret.encode(), clock, sleep
        self._allow_private = allow_private
        self._resolve = resolve or _resolve
        self._http = httpx.AsyncClient(
            transport=transport, timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False
        )
        self._tasks: set[asyncio.Task[bool]] = set()

    def send(self, url: str, event: Mapping[str, Any]) -> None:
        """`event`: what JSON can say; it gets an `id` that stays the same over repetitions. Never waits and raises
        nothing; when a thousand are under way, further ones are dropped and logged."""
        if len(self._tasks) >= _QUEUE_MAX:
            log.warning("too many alerts are under way; one is dropped", url=_safe(url))
            return
        body = msgspec.json.encode({"id": f"evt_{secrets.token_hex(12)}", **event})
        task = asyncio.get_running_loop().create_task(self.deliver(url, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def deliver(self, url: str, body: bytes) -> bool:
        """Three tries; whether one was answered with 2xx. What can never succeed is not tried again."""
        for attempt in range(_TRIES):
            if attempt:
                await self._sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                status = await self._post(url, body)
            except InvalidRequest as error:
                log.warning("an alert is not sent", url=_safe(url), reason=error.message)
                return False
            except (httpx.HTTPError, OSError) as error:
                log.info("an alert failed", url=_safe(url), attempt=attempt + 1, error=repr(error))
                continue
            if 200 <= status < 300:
                return True
            log.info("an alert was refused", url=_safe(url), attempt=attempt + 1, status=status)
            if 300 <= status < 500 and status not in (408, 425, 429):
                return False
        log.warning("an alert could not be delivered", url=_safe(url))
        return False

    async def close(self, patience_s: float = 5.0) -> None:
        """Waits a little for what is under way, then gives it up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._http.aclose()

    async def _post(self, url: str, body: bytes) -> int:
        parsed = check_url(url)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        addresses = await self._resolve(parsed.host, port)
        if not addresses:
            raise OSError(f"no address for {parsed.host}")
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise InvalidRequest("the address is not a public one", param="url")
        headers = {
            "Host": parsed.netloc.decode(),
            "Content-Type": "application/json",
            "User-Agent": "stoa-webhooks",
            SIGNATURE: signature(self._secret, int(self._clock()), body),
        }
        request = self._http.build_request(
            "POST",
            parsed.copy_with(host=addresses[0]),
            content=body,
            headers=headers,
            extensions={"sni_hostname": parsed.host},  # certificates are of the name
        )
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await self._http.send(
                request, stream=True
            )  # the body does not matter and may be endless
            await answer.aclose()
        return answer.status_code


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """t=TIME,v1=HMAC-SHA256 of "TIME.BODY" in hex."""
    digest = hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def check_url(url: str) -> httpx.URL:
    """The parsed address, as far as can be told without asking anybody. Raises InvalidRequest."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise InvalidRequest("url is not a URL; accepted: https://HOST/PATH", param="url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise InvalidRequest(
            "url must begin with https:// or http://, name a host, and carry no password", param="url"
        )
    return parsed


def is_public(address: str) -> bool:
    """Whether it belongs to the open internet. Addresses that wrap another one are judged by that too."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _safe(url: str) -> str:
    """Its host, for the log: the rest may hold secrets."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2][:200]
