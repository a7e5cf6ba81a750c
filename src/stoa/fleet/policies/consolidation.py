"""What is given back and what is moved together: which replicas go first, which adapters belong where.

A drained replica's sequences migrate, so giving back costs little more than the work of those that move; hence the
replica with the fewest goes first (Llumnix, OSDI 2024; Punica's scheduler, MLSys 2024, fills the fullest for the same end).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping

from stoa.fleet.policies.facts import ReplicaSeen


def first_to_go(replicas: Iterable[ReplicaSeen]) -> list[ReplicaSeen]:
    """In the order of giving back: starting before ready, dear before cheap, few sequences before many, new before old."""
    return sorted(replicas, key=lambda r: (r.state == "ready", -r.offer.hourly, r.running, -r.since_s, r.id))


def give_back(order: Iterable[ReplicaSeen], spare: int) -> list[str]:
    """Of replicas that may go, in this order: all that start, and of the ready ones `spare` at most."""
    leaving: list[str] = []
    for r in order:
        if r.state == "ready":
            if spare <= 0:
                continue
            spare -= 1
        leaving.append(r.id)
    return leaving


def advise(
    rates: Mapping[str, float],
    total: float,
    holders: Callable[[str], Collection[str]],
    room: Mapping[str, int],
    *,
    least: float = 0.0,
    may: Callable[[str, str], bool] = lambda adapter, replica: True,
) -> dict[str, list[str]]:
    """Adapters that each replica should read ahead of need, those asked for most first.

    `rates`: requests a second by adapter; `total`: of all requests, also those without an adapter; `holders`: replicas
    that hold an adapter; `room`: adapters that each replica can take without giving up another, by replica that takes
    requests; `least`: requests a second that a copy must be worth; `may`: whether a replica may hold an adapter.

    An adapter gets one copy for each started share of 1 / replicas of all requests, so that no replica carries more than
    its part for it, but none of less than `least`. Copies stay where they are; missing ones go to the replicas with the
    least to carry. The only copy of an adapter goes where there is room; one of several also makes a colder one give way.

    Nothing is forgotten: a copy too many is used less than its neighbours, so it is the first that its replica evicts
    when it wants the room, and until then it costs nothing. What one gateway finds cold may be hot at another.
    """
    count, left = len(room), dict(room)
    carried = dict.fromkeys(room, 0.0)
    wanting: list[tuple[str, int, list[str]]] = []  # adapter, its copies, where it is
    worth = [a for a, rate in rates.items() if rate > 0 and rate >= least]
    for adapter in sorted(worth, key=lambda a: (-rates[a], a)):
        rate, there = rates[adapter], [r for r in holders(adapter) if r in room]
        paid = int(min(count, rate / least)) if least else count
        copies = min(paid, max(1, math.ceil(count * rate / total - 1e-9)))
        if len(there) < copies:
            wanting.append((adapter, copies, there))
        for replica in there:
            carried[replica] += rate / len(there)
    found: dict[str, list[str]] = {}
    for adapter, copies, there in wanting:
        able = [r for r in room if r not in there and (copies > 1 or left[r] > 0) and may(adapter, r)]
        for replica in heapq.nsmallest(copies - len(there), able, key=lambda r: (carried[r], r)):
            found.setdefault(replica, []).append(adapter)
            carried[replica] += rates[adapter] / copies
            left[replica] -= 1
    return found
