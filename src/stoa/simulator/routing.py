"""The fleet's own router, for traces with adapters: called for every request, as a gateway calls it."""

from __future__ import annotations

import random

from stoa.fleet.policies.profile import Profile
from stoa.fleet.policies.router import Ask, Costs, Place, ReplicaLoad, View, route


class Routing:
    """Keeps the `View` of a fleet with one gateway. What is believed of adapters is then what is true: each replica has
    the `adapters_each` that it used last, and reads one it lacks in `profile.adapter_load_s`, while others go on."""

    def __init__(
        self, profile: Profile, costs: Costs, *, adapters_each: int, queue_limit: int, rng: random.Random
    ) -> None:
        self._view = View(costs, adapters_each=adapters_each)
        self._slots = profile.max_num_seqs
        self._load_s = profile.adapter_load_s
        self._limit = queue_limit
        self._rng = rng
        self._names: dict[int, str] = {}  # of the replica that has the slot
        self._places: dict[int, Place] = {}  # by ticket
        self._arriving: dict[tuple[str, str], float] = {}  # when an adapter will be read
        self._launched = 0
        self.hits = self.loads = 0

    def add(self, slot: int) -> None:
        self._launched += 1
        self._names[slot] = f"{slot}/{self._launched}"
        self._view.add(ReplicaLoad(self._names[slot], slots=self._slots))

    def close(self, slot: int) -> None:
        self._view.replicas[self._view.index[self._names[slot]]].taking = False

    def drop(self, slot: int) -> None:
        name = self._names.pop(slot)
        self._view.remove(name)
        self._arriving = {key: at_s for key, at_s in self._arriving.items() if key[0] != name}

    def choose(self, ticket: int, now_s: float, prompt: int, project: int, adapter: int) -> tuple[int, float]:
        """(slot, seconds until the adapter is there); slot -1: nobody takes requests."""
        ask = Ask(str(project), str(adapter) if adapter >= 0 else None, prompt)
        index = route(ask, self._view, self._rng)
        if index is None or (self._limit and self._view.replicas[index].running >= self._limit):
            return -1, 0.0
        name = self._view.replicas[index].id
        delay_s = self._delay_s(name, ask.adapter, now_s)
        self._places[ticket] = self._view.send(index, ask)
        return int(name.partition("/")[0]), delay_s

    def answered(self, ticket: int) -> None:
        self._places[ticket].answered()

    def left(self, ticket: int) -> None:
        self._places.pop(ticket).leave()

    def _delay_s(self, name: str, adapter: str | None, now_s: float) -> float:
        if adapter is None:
            return 0.0
        key = (name, adapter)
        if self._view.adapters.holds(name, adapter):
            self.hits += 1
            at_s = self._arriving.get(key, now_s)
            if at_s <= now_s:
                self._arriving.pop(key, None)
            return max(0.0, at_s - now_s)
        self.loads += 1
        self._arriving[key] = now_s + self._load_s
        return self._load_s
