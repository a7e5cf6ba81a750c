"""Signed calls to addresses that customers chose."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from stoa.errors import InvalidRequest
from stoa.tenancy.alerts import SIGNATURE, Webhooks, check_url, is_public

PUBLIC = "93.184.216.34"


class World:
    """Names with their addresses, and a server behind each address that answers what it is told to."""

    def __init__(self, *answers: int | Exception, names: dict[str, Sequence[str]] | None = None) -> None:
        self.answers = list(answers)
        self.names = names or {"hooks.example.com": [PUBLIC]}
        self.calls: list[httpx.Request] = []
        self.waits: list[float] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return self.names[host]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.calls.append(request)
        found = self.answers.pop(0) if self.answers else 200
        if isinstance(found, Exception):
            raise found
        return httpx.Response(found, headers={"Location": "http://127.0.0.1/"})

    def webhooks(self, **more: Any) -> Webhooks:
        return Webhooks(
            "whsec",
            clock=lambda: 1234.5,
            resolve=self.resolve,
            sleep=self.sleep,
            transport=httpx.MockTransport(self.answer),
            **more,
        )


async def sent(world: World, url: str = "https://hooks.example.com/stoa?x=1", **more: Any) -> None:
    hooks = world.webhooks(**more)
    hooks.send(url, {"type": "budget.alert", "project_id": "proj_a"})
    await hooks.close()


async def test_an_alert_is_signed_json_to_the_checked_address() -> None:
    """The call goes to the resolved address, under the name for host and certificate; the signature covers time and
    body."""
    world = World()
    await sent(world)
    [call] = world.calls
    assert str(call.url) == f"https://{PUBLIC}/stoa?x=1"
    assert call.headers["host"] == "hooks.example.com"
    assert call.extensions["sni_hostname"] == "hooks.example.com"
    body = json.loads(call.content)
    assert body.pop("id").startswith("evt_")
    assert body == {"type": "budget.alert", "project_id": "proj_a"}
    expected = hmac.new(b"whsec", b"1234." + call.content, hashlib.sha256).hexdigest()
    assert call.headers[SIGNATURE] == f"t=1234,v1={expected}"


async def test_failures_are_tried_three_times() -> None:
    """With growing pauses and the same event; then it is given up."""
    world = World(500, httpx.ConnectError("down"))
    await sent(world)
    assert len(world.calls) == 3
    assert world.waits == [1.0, 2.0]
    assert len({call.content for call in world.calls}) == 1
    world = World(500, 429, 503, 200)
    await sent(world)
    assert len(world.calls) == 3


async def test_what_cannot_succeed_is_not_repeated() -> None:
    """Neither refusals nor redirects, which are not followed."""
    for status in (404, 410, 302):
        world = World(status)
        await sent(world)
        assert len(world.calls) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1"])
async def test_private_addresses_are_not_called(address: str) -> None:
    """Also when only one of a name's addresses is private; allowed if the operator says so."""
    names: dict[str, Sequence[str]] = {"inside.example.com": [PUBLIC, address]}
    world = World(names=names)
    await sent(world, "http://inside.example.com/")
    assert world.calls == []
    world = World(names={"inside.example.com": [address]})
    await sent(world, "http://inside.example.com:8080/", allow_private=True)
    [call] = world.calls
    assert (call.url.host, call.url.port) == (address, 8080)
    assert call.headers["host"] == "inside.example.com:8080"


def test_public_and_other_addresses() -> None:
    """Loopback, private, link-local, shared, multicast, reserved and wrapped ones are not public."""
    assert all(is_public(a) for a in (PUBLIC, "8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"))
    private = (
        *("0.0.0.0", "127.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "fec0::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:0:0::1", "name", ""),
    )
    assert [a for a in private if is_public(a)] == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example",
        "https://",
        "nonsense",
        "https://user:pw@a.example/",
        "file:///etc/passwd",
        "https://[::",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """At the door already, with what is accepted."""
    with pytest.raises(InvalidRequest, match="https://"):
        check_url(url)


async def test_sending_never_waits() -> None:
    """A receiver that does not answer holds up nobody, and is left at the end."""
    world = World()

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    world.resolve = never  # type: ignore[method-assign]
    hooks = world.webhooks()
    for _ in range(1500):
        hooks.send("https://hooks.example.com/", {})
    await hooks.close(patience_s=0.01)
    assert world.calls == []
