"""Hot adapters come to several replicas before their requests do; cold ones stay where they are."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing

import pytest

from stoa.economics.node import Node
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.usage import RequestUsage
from stoa.fleet.books import Books
from stoa.fleet.fleet import Fleet
from stoa.fleet.placement import Placement
from stoa.fleet.replica import Receiver
from tests.tenancy.meters.clock import ManualClock

HOT = "hot"


class Shelf:
    """A replica that holds adapters and answers every request with one token; the request then runs until cancelled."""

    kernels, notice, restarts, max_model_len = "fake", "", 0, 64

    def __init__(self, id: str, *, ours: bool = True, most: int = 1000) -> None:
        self.id, self.node, self.ours, self.ready = id, Node(), ours, True
        self.changed: Callable[[], None] = lambda: None
        self.most = most
        self.held: dict[str, None] = {}  # longest unused first
        self.loads = 0
        self.told: list[str] = []
        self.running: dict[str, tuple[str, Receiver]] = {}

    @property
    def load(self) -> Counter[str]:
        """Running requests by adapter."""
        return Counter(adapter for adapter, _ in self.running.values())

    def keep_books(self, books: Books) -> None: ...

    def unfit(self, request: GenerationRequest) -> str | None:
        return None

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        adapter = request.adapter.id if request.adapter else ""
        if adapter:
            self._hold(adapter)
        self.running[request.id] = adapter, receiver
        receiver.events([TokenEvent(request_id=request.id, token_ids=[1])])

    def cancel(self, request_id: str) -> None:
        if (found := self.running.pop(request_id, None)) is not None:
            found[1].used(RequestUsage(request_id=request_id, outcome="cancelled"), 0)

    async def stats(self) -> EngineStats:
        return EngineStats(held_adapters=list(self.held), adapter_loads=self.loads)

    def warm(self, ref: AdapterRef) -> None:
        self.told.append(ref.id)
        self._hold(ref.id)

    def forget(self, adapter_id: str) -> None:
        self.held.pop(adapter_id, None)

    async def stop(self) -> None:
        self.ready = False

    def _hold(self, adapter: str) -> None:
        self.loads += adapter not in self.held
        self.held.pop(adapter, None)
        self.held[adapter] = None
        while len(self.held) > self.most:
            del self.held[next(iter(self.held))]


class Shop:
    """A fleet of shelves."""

    def __init__(self, *shelves: Shelf) -> None:
        self.shelves = {shelf.id: shelf for shelf in shelves}
        self.fleet = Fleet()
        self._names = itertools.count()
        for shelf in shelves:
            self.fleet.add(shelf)

    async def wave(self, adapters: list[str | None]) -> dict[str, Counter[str]]:
        """One request for each, all at once; what ran where."""
        async with AsyncExitStack() as stack:
            for adapter in adapters:
                ref = AdapterRef(id=adapter, path=f"/{adapter}") if adapter else None
                request = GenerationRequest(id=str(next(self._names)), prompt_token_ids=[1], adapter=ref)
                stream = await stack.enter_async_context(aclosing(self.fleet.generate(request)))  # type: ignore[type-var]
                await anext(stream)
            return {shelf.id: shelf.load for shelf in self.shelves.values()}

    async def turn(self) -> None:
        await self.fleet.learn_residency()
        self.fleet.place_adapters()
        await self.fleet.learn_residency()

    def holders(self, adapter: str) -> list[str]:
        return [shelf.id for shelf in self.shelves.values() if adapter in shelf.held]


def mix(rng: random.Random, requests: int, colds: int = 16) -> list[str | None]:
    """Six of ten for the hot adapter."""
    found: list[str | None] = [HOT] * (requests * 6 // 10)
    found += [f"cold-{k % colds}" for k in range(requests - len(found))]
    rng.shuffle(found)
    return found


def shelves(count: int, **more: int) -> list[Shelf]:
    return [Shelf(f"r{i}", **more) for i in range(count)]  # type: ignore[arg-type]


async def test_a_hot_adapter_is_spread_and_the_load_evens_out() -> None:
    """With six requests of ten for one adapter, three of four replicas get it, and all then run about the same; each cold
    adapter stays at one."""
    shop, rng = Shop(*shelves(4)), random.Random(3)
    for _ in range(40):
        await shop.wave([rng.choice(mix(rng, 40))])  # one after the other: nothing makes them spread
    assert len(shop.holders(HOT)) < 3
    await shop.turn()
    assert len(shop.holders(HOT)) == 3
    assert all(len(shop.holders(f"cold-{k}")) <= 1 for k in range(16))
    ran = await shop.wave(mix(rng, 40))
    assert all(ran[replica][HOT] for replica in shop.holders(HOT))
    assert max(load.total() for load in ran.values()) <= 15
    await shop.turn()
    assert sum(len(shelf.told) for shelf in shop.shelves.values()) == 3 - 1
    assert all(len(shop.holders(f"cold-{k}")) <= 2 for k in range(16))


async def test_a_replica_that_joins_gets_its_part() -> None:
    """It has read the hot adapter before a request for it comes."""
    shop = Shop(*shelves(2))
    for _ in range(3):
        await shop.wave([HOT] * 10)
    await shop.turn()
    new = Shelf("new")
    shop.shelves["new"] = new
    shop.fleet.add(new)
    await shop.turn()
    assert new.told == [HOT]


async def test_the_adapters_of_a_replica_that_leaves_are_read_elsewhere() -> None:
    """Those that are asked for often enough; without their next request having to wait."""
    shop = Shop(*shelves(3))
    for _ in range(10):
        await shop.wave([f"a{k}" for k in range(3)] + [None] * 9)
    await shop.wave(["rare"])
    await shop.turn()
    for adapter in ("a0", "a1", "a2"):
        (home,) = shop.holders(adapter)
        await shop.fleet.remove(home)
        del shop.shelves[home]
        if shop.shelves:
            await shop.turn()
            assert shop.holders(adapter)
    assert "rare" not in [a for shelf in shop.shelves.values() for a in shelf.told]


async def test_nothing_is_read_where_no_requests_go() -> None:
    """Replicas that drain or are not ready, and other services, are left out."""
    drains, starts, stays, other = Shelf("a"), Shelf("b"), Shelf("c"), Shelf("d", ours=False)
    starts.ready = False
    shop = Shop(drains, starts, stays, other)
    shop.fleet.members["a"].draining = True
    shop.fleet.changed()
    for _ in range(10):
        await shop.wave([HOT] * 10)
    stays.held.clear()
    await shop.turn()
    assert [shelf.told for shelf in (drains, starts, stays, other)] == [[], [], [HOT], []]


async def test_a_new_adapter_is_read_at_its_homes() -> None:
    """Not by all: of a thousand uploads each replica would keep the last few. Other services are told."""
    other = Shelf("other", ours=False)
    shop = Shop(*shelves(5), other)
    await shop.fleet.warm(AdapterRef(id="new", path="/new"))
    assert len(shop.holders("new")) == 3
    assert other.told == ["new"]
    ran = await shop.wave(["new"])
    assert next(replica for replica, load in ran.items() if load) in shop.holders("new")


async def test_an_adapter_that_is_gone_is_not_read_again() -> None:
    """However hot it was."""
    shop = Shop(*shelves(3))
    await shop.wave([HOT] * 30)
    await shop.fleet.forget(HOT)
    await shop.turn()
    assert not shop.holders(HOT)


async def test_full_replicas_do_not_take_turns_reading() -> None:
    """More adapters than fit, all asked for alike: reading ahead adds nothing to what requests load anyway."""
    shop = Shop(*shelves(2, most=3))
    for _ in range(20):
        await shop.wave([f"a{k}" for k in range(12)])
        await shop.turn()
    assert sum(len(shelf.told) for shelf in shop.shelves.values()) <= 2 * 4


async def test_several_gateways_advise_without_quarrel() -> None:
    """One's hot adapter is unknown to the other: it stays where the first has brought it."""
    common = shelves(4)
    one, two = Shop(*common), Shop(*common)
    for _ in range(5):
        await one.wave(["one's"] * 8)
        await two.wave(["two's"] * 8)
        await one.turn()
        await two.turn()
    assert len(one.holders("one's")) == len(one.holders("two's")) == 4
    assert all(len(shelf.told) <= 2 for shelf in common)


# -- rates


def ref(name: str, path: str = "/") -> AdapterRef:
    return AdapterRef(id=name, path=path)


def turned(placement: Placement, replicas: str = "ab") -> list[tuple[str, AdapterRef]]:
    return placement.turn(list(replicas), lambda _: ())


def test_rates_fade() -> None:
    """What was hot and is not asked for any more is not read after some minutes, and takes no memory."""
    clock = ManualClock()
    placement = Placement(clock)
    for _ in range(100):
        placement.asked(ref("x"))
    assert {r for r, _ in turned(placement)} == {"a", "b"}
    clock.pass_s(600)
    assert turned(placement) == []
    clock.pass_s(600)
    turned(placement)
    assert not placement._heat
    assert not placement._refs


def test_the_latest_reference_is_used() -> None:
    """A project's copy of the folder may have moved."""
    placement = Placement(ManualClock())
    for path in ("/old", "/new"):
        for _ in range(50):
            placement.asked(ref("x", path))
    assert {found.path for _, found in turned(placement)} == {"/new"}


def test_a_clock_that_goes_back_heats_nothing() -> None:
    """Then no time has passed."""
    clock = ManualClock()
    placement = Placement(clock)
    placement.asked(ref("x"))
    clock.pass_s(-10_000)
    assert turned(placement) == []


@pytest.mark.parametrize("turns", [True, False])
def test_memory_is_bounded(turns: bool) -> None:
    """However many adapters there are, and also where nobody ever takes a turn."""
    placement = Placement(ManualClock())
    for k in range(30_000):
        placement.asked(ref(f"a{k}"))
        if turns and k % 5000 == 0:
            turned(placement)
    assert max(len(placement._refs), len(placement._asked), len(placement._heat)) <= 2 * 4096


def test_few_are_read_at_once() -> None:
    """So that requests for cold adapters do not wait long behind them."""
    placement = Placement(ManualClock())
    for k in range(50):
        for _ in range(20):
            placement.asked(ref(f"a{k}"))
    assert Counter(replica for replica, _ in turned(placement)) == {"a": 4, "b": 4}
