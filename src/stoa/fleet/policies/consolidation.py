"""What is given back and what is moved together: which replicas go first, which adapters belong where.

A drained replica's sequences migrate, so giving back costs little more than the work of those that move; hence the
replica with the fewest goes first (Llumnix, OSDI 2024; Punica's scheduler, MLSys 2024, fills the fullest for the same end).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from stoa.fleet.policies.facts import ReplicaSeen


def first_to_go(replicas: Iterable[ReplicaSeen]) -> list[ReplicaSeen]:
    """In the order of giving back: starting before ready, dear before cheap, few sequences before many, new before old."""
    return sorted(replicas, key=lambda r: (r.state == "ready", -r.offer.hourly, r.running, -r.since_s, r.id))


@dataclass(frozen=True, slots=True)
class Advice:
    """To one replica: adapters to read ahead of need, and adapters it need not keep."""

    replica: str
    warm: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()


def advise(
    rates: Mapping[str, float], holders: Mapping[str, Set[str]], replicas: Sequence[str], slots: int
) -> list[Advice]:
    """Where adapters should be. `rates`: requests a second by adapter; `holders`: adapters by replica that holds them;
    `replicas`: those that take requests; `slots`: adapters that one replica keeps at ease.

    An adapter gets one copy for each started share of 1 / replicas of all requests, so that no replica carries more than
    its part for it; a cold one gets one. Copies stay where they are; missing ones go to the replicas with the least
    rate of adapters placed so far. What is held beyond this is forgotten only where a replica holds more than `slots`,
    the coldest first, and never the only copy of an adapter that is still asked for."""
    if not replicas or slots < 1:
        return []
    total = sum(rates.values())
    order = sorted((a for a, rate in rates.items() if rate > 0), key=lambda a: (-rates[a], a))
    homes: dict[str, set[str]] = {r: set() for r in replicas}
    carried = dict.fromkeys(replicas, 0.0)
    for adapter in order:
        copies = min(len(replicas), max(1, math.ceil(len(replicas) * rates[adapter] / total - 1e-9)))
        for home in _homes(adapter, copies, homes, holders, carried, slots):
            homes[home].add(adapter)
            carried[home] += rates[adapter] / copies
    advice = (_for(r, homes[r], holders.get(r, frozenset()), rates, slots) for r in replicas)
    return [a for a in advice if a.warm or a.forget]


def _homes(
    adapter: str,
    copies: int,
    homes: Mapping[str, Set[str]],
    holders: Mapping[str, Set[str]],
    carried: Mapping[str, float],
    slots: int,
) -> list[str]:
    """Those that hold it already come first, then those with the least to carry."""
    room = [r for r in homes if len(homes[r]) < slots]
    room.sort(key=lambda r: (adapter not in holders.get(r, frozenset()), carried[r], r))
    return room[:copies]


def _for(replica: str, home: Set[str], held: Set[str], rates: Mapping[str, float], slots: int) -> Advice:
    warm = sorted(home - held, key=lambda a: (-rates[a], a))
    spare = sorted(held - home, key=lambda a: (rates.get(a, 0.0), a))
    excess = len(held | home) - slots
    return Advice(replica, tuple(warm), tuple(spare[: max(0, excess)]))
