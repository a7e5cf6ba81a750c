"""How often each adapter is asked for, and which replicas should read it ahead of need (`policies/consolidation.py`).

Each gateway knows its own requests only. That does no harm: it advises to read, never to forget, and reading what is
there already does nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection

from stoa.engine.request import AdapterRef
from stoa.engine.stats import EngineStats
from stoa.fleet.policies.consolidation import advise

_HALF_LIFE_S = 60.0  # after which a request counts half
_LEAST_PER_S = 4 / 60  # requests that a copy must be worth: a load pays by four, as the router reckons
_FADED = 0.1  # requests; less is forgotten
_MOST = 4096  # adapters remembered, the hottest
_AT_ONCE = 4  # adapters that a replica is told to read in one turn: requests wait behind them at its loader


class Placement:
    """`clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turned_s = clock()
        self._asked: dict[str, int] = {}  # requests since the last turn, by adapter
        self._asked_all = 0
        self._heat: dict[str, float] = {}  # requests, faded, as of the last turn
        self._heat_all = 0.0
        self._refs: dict[str, AdapterRef] = {}  # as last asked for
        self._given_up: dict[str, int] = {}  # adapters that each replica has given up so far
        self._full: set[str] = set()  # replicas that have done so since the look before

    def asked(self, ref: AdapterRef | None) -> None:
        """A request has come, for that adapter or none."""
        self._asked_all += 1
        if ref is not None and (ref.id in self._refs or len(self._refs) < 2 * _MOST):
            self._asked[ref.id] = self._asked.get(ref.id, 0) + 1
            self._refs[ref.id] = ref

    def forget(self, adapter_id: str) -> None:
        """It is served no more."""
        for table in (self._asked, self._heat, self._refs):
            table.pop(adapter_id, None)

    def seen(self, replica_id: str, stats: EngineStats) -> None:
        """Who reads and does not hold more than before has given something up for it."""
        given_up = stats.adapter_loads - len(stats.held_adapters)
        full = given_up > self._given_up.get(replica_id, given_up)
        self._given_up[replica_id] = given_up
        (self._full.add if full else self._full.discard)(replica_id)

    def turn(
        self,
        replicas: Collection[str],
        holders: Callable[[str], Collection[str]],
        may: Callable[[str, str], bool] = lambda adapter, replica: True,
    ) -> list[tuple[str, AdapterRef]]:
        """Every few seconds: (replica, adapter that it should read), of `replicas`, which take requests. `holders`:
        replicas that hold an adapter; `may`: whether a replica may."""
        self._fade()
        self._full.intersection_update(replicas)
        self._given_up = {r: n for r, n in self._given_up.items() if r in replicas}
        room = {replica: 0 if replica in self._full else _AT_ONCE for replica in replicas}
        per_s = math.log(2) / _HALF_LIFE_S
        rates = {adapter: heat * per_s for adapter, heat in self._heat.items()}
        advice = advise(rates, self._heat_all * per_s, holders, room, least=_LEAST_PER_S, may=may)
        return [(r, self._refs[adapter]) for r, adapters in advice.items() for adapter in adapters[:_AT_ONCE]]

    def _fade(self) -> None:
        now_s = self._clock()
        kept = 0.5 ** (max(0.0, now_s - self._turned_s) / _HALF_LIFE_S)
        heat = {a: h * kept for a, h in self._heat.items()}
        for adapter, requests in self._asked.items():
            heat[adapter] = heat.get(adapter, 0.0) + requests
        hottest = heapq.nlargest(_MOST, heat, key=heat.__getitem__) if len(heat) > _MOST else heat
        self._heat = {a: heat[a] for a in hottest if heat[a] > _FADED}
        self._heat_all = self._heat_all * kept + self._asked_all
        self._refs = {a: self._refs[a] for a in self._heat}
        self._asked, self._asked_all, self._turned_s = {}, 0, now_s
