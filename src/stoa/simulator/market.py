"""Zones, the machines they give, and when they take them back."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from stoa.fleet.policies.facts import Market, Offer, OfferSeen, ReplicaState
from stoa.simulator.spot import SpotTrace


@dataclass(frozen=True, slots=True)
class Zone:
    """Where machines can be had. Prices in USD an hour, None: not of that kind. `spot`: how many spot machines there
    are, None: any number."""

    name: str
    on_demand_hourly: float | None = None
    spot_hourly: float | None = None
    spot: SpotTrace | None = None
    startup_s: float = 120.0
    on_demand_capacity: int | None = None

    def offers(self) -> list[Offer]:
        prices: tuple[tuple[Market, float | None], ...] = (
            ("spot", self.spot_hourly), ("on_demand", self.on_demand_hourly),
        )  # fmt: skip
        return [Offer(self.name, market, p, self.startup_s) for market, p in prices if p is not None]


@dataclass(slots=True)
class Machine:
    """With one replica. It is paid from launch to end."""

    id: str
    offer: Offer
    launched_s: float
    ready_s: float
    state: ReplicaState
    since_s: float
    slot: int = -1  # -1: not ready yet
    ends_s: float = math.inf  # announced
    ended_s: float | None = None
    moved: bool = False  # its requests were sent elsewhere


@dataclass(slots=True)
class _Stock:
    zone: Zone
    spot: list[Machine] = field(default_factory=list)
    on_demand: list[Machine] = field(default_factory=list)
    next_change_s: float = math.inf


class Markets:
    """What the clouds do. `notice_s`: so long before a zone has fewer spot machines, those that must go are told; a
    launch succeeds if the zone has one that it need not take back within that time. Which go is drawn."""

    def __init__(
        self, zones: Sequence[Zone], *, notice_s: float, startup_spread: float, rng: random.Random
    ) -> None:
        self._stocks = {zone.name: _Stock(zone) for zone in zones}
        if len(self._stocks) != len(zones):
            raise ValueError("two zones have the same name")
        self.seen = {offer: OfferSeen(offer) for zone in zones for offer in zone.offers()}
        self.notice_s = notice_s
        self._spread = startup_spread
        self._rng = rng
        self._launched = 0
        for stock in self._stocks.values():
            if stock.zone.spot is not None:
                stock.next_change_s = stock.zone.spot.next_change_s(0.0)

    @property
    def machines(self) -> list[Machine]:
        return [m for s in self._stocks.values() for m in (*s.spot, *s.on_demand)]

    def launch(self, offer: Offer, now_s: float) -> Machine | None:
        """None: there is none to be had."""
        seen = self.seen[offer]
        stock = self._stocks[offer.zone]
        machines = stock.spot if offer.market == "spot" else stock.on_demand
        if len([m for m in machines if m.ends_s == math.inf]) >= self._capacity(stock.zone, offer, now_s):
            self.seen[offer] = OfferSeen(offer, seen.launched_s, now_s, seen.preempted_s)
            return None
        self.seen[offer] = OfferSeen(offer, now_s, seen.refused_s, seen.preempted_s)
        self._launched += 1
        startup_s = offer.startup_s * (1 + self._spread * self._rng.uniform(-1, 1))
        name = f"{offer.zone}/{offer.market}/{self._launched}"
        machine = Machine(name, offer, now_s, now_s + startup_s, "starting", now_s)
        machines.append(machine)
        return machine

    def _capacity(self, zone: Zone, offer: Offer, now_s: float) -> float:
        if offer.market == "on_demand":
            return math.inf if zone.on_demand_capacity is None else zone.on_demand_capacity
        if zone.spot is None:
            return math.inf
        least, at_s = zone.spot.capacity(now_s), now_s
        while least and (at_s := zone.spot.next_change_s(at_s)) <= now_s + self.notice_s:
            least = min(least, zone.spot.capacity(at_s))
        return least

    def next_notice_s(self) -> float:
        """When `notices` has something to say next."""
        return min((s.next_change_s for s in self._stocks.values()), default=math.inf) - self.notice_s

    def notices(self, now_s: float) -> list[Machine]:
        """Machines that are told now that they end, at their `ends_s`."""
        told: list[Machine] = []
        for stock in self._stocks.values():
            spot = stock.zone.spot
            while spot is not None and stock.next_change_s - self.notice_s <= now_s:
                change_s = stock.next_change_s
                stock.next_change_s = spot.next_change_s(change_s)
                free = [m for m in stock.spot if m.ends_s == math.inf]
                excess = len(free) - spot.capacity(change_s)
                for machine in self._rng.sample(free, max(0, excess)):
                    machine.ends_s = max(change_s, now_s)
                    told.append(machine)
        return told

    def preempted(self, machine: Machine, now_s: float) -> None:
        """The policy may know from now on that this offer takes machines back."""
        seen = self.seen[machine.offer]
        self.seen[machine.offer] = OfferSeen(machine.offer, seen.launched_s, seen.refused_s, now_s)

    def end(self, machine: Machine, now_s: float) -> None:
        machine.ended_s = now_s
        stock = self._stocks[machine.offer.zone]
        (stock.spot if machine.offer.market == "spot" else stock.on_demand).remove(machine)
