"""Where a plan lets requests go: residency first, then its shares among places, then overflow to remotes.

    allowed   replicas within the places of the request's project; what is nowhere that the plan knows is outside
    steady    of these, our own, and remotes that are behind a share of their own: `route` chooses as ever
    shares    a place that is more than `SLACK` ahead of its share, over about `WINDOW` requests, gives way to those that are
              behind, if one of these would make the request wait no more than `Section.imbalance_s` longer
    overflow  where our own would make it wait longer than the rule's `wait_s`, or none takes it: a remote whose rule is for
              this group and class, as long as it has had no more than its share of the requests that the rule is for

Adapters and prefixes count as long as shares are kept: what `route` finds best is only passed over by who is ahead.
Nothing but `choose` sends requests anywhere, so what is not allowed here does not happen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stoa.fleet.policies.contract import REMOTE, Overflow, Weights
from stoa.fleet.policies.modelplan import ModelPlan, confined_key
from stoa.fleet.policies.router import Ask, View, expected_wait_s, route

WINDOW = 512  # requests over which shares are kept, fading
SLACK = 0.05
_KEEP = 1 - 1 / WINDOW
_MOST_PROJECTS = 65_536  # remembered
_PERIOD_S = 1.0  # between two looks at the calendar


_Who = tuple[str, frozenset[str] | None]  # group, and places where it may be served


@dataclass(slots=True)
class _Counts:
    """Requests, fading: all, and those that went to each site."""

    all: float = 0.0
    to: dict[str, float] = field(default_factory=dict)

    def add(self) -> None:
        self.all = self.all * _KEEP + 1
        for site in self.to:
            self.to[site] *= _KEEP

    def sent(self, site: str) -> None:
        self.to[site] = self.to.get(site, 0.0) + 1

    def of(self, site: str) -> float:
        return self.to.get(site, 0.0)


@dataclass(frozen=True, slots=True)
class _Replica:
    """`site`: what shares speak of: its place, or the remote itself."""

    place: str
    site: str
    ours: bool


@dataclass(frozen=True, slots=True)
class _Lane:
    """Requests of one class and group that may be served at the same places. Sets are ids of replicas."""

    barred: frozenset[str]  # outside
    steady: frozenset[str]  # those, and remotes that have no share
    remotes: Sequence[str]  # that have one
    sites: Mapping[str, frozenset[str]]
    shares: Mapping[str, float]  # by site; sum 1, or empty: nothing is steered
    rules: Sequence[tuple[int, Overflow]]  # with their places in the plan
    counts: _Counts


class Steering:
    """Of one gateway, or of one simulated fleet. Keeps what it has sent where, for shares."""

    def __init__(self, plan: ModelPlan) -> None:
        self.plan = plan
        self._replicas: dict[str, _Replica] = {}
        self._who: dict[str, _Who] = {}  # by project
        self._lanes: dict[tuple[str, _Who], _Lane] = {}
        self._counts: dict[tuple[str, str], _Counts] = {}
        self._rules = [_Counts() for _ in plan.section.overflow]
        self._period = -1
        self._looked_s = -math.inf

    # -- who is there

    def add(self, replica: str, zone: str, *, ours: bool) -> None:
        """`zone`: what it says of where it is; "": nothing. A remote stands for a place if both it and the plan say so."""
        place = self.plan.place_of(zone)
        ours = ours or (place != "" and self.plan.hosts.get(replica) == place)
        self._replicas[replica] = _Replica(place, place if ours else REMOTE + replica, ours)
        self._lanes.clear()

    def remove(self, replica: str) -> None:
        self._replicas.pop(replica, None)
        self._lanes.clear()

    # -- who may

    def places(self, project: str) -> frozenset[str] | None:
        """Where its requests may be served; None: anywhere."""
        return self._who_is(project)[1]

    def may(self, project: str, replica: str) -> bool:
        places = self.places(project)
        return places is None or (
            (known := self._replicas.get(replica)) is not None and known.place in places
        )

    def may_hold(self, adapter: str, replica: str) -> bool:
        """`adapter`: OWNER:HASH, or HASH of one that is everybody's."""
        owner = adapter.rpartition(":")[0]
        return not owner or self.may(owner, replica)

    def confined(self, project: str) -> str | None:
        """Its places as one text; None: it may be served anywhere."""
        places = self.places(project)
        return None if places is None else confined_key(places)

    def _who_is(self, project: str) -> _Who:
        who = self._who.get(project)
        if who is None:
            if len(self._who) >= _MOST_PROJECTS:
                self._who.clear()
            who = self._who[project] = (self.plan.group_of(project), self.plan.confines(project))
        return who

    # -- which one

    def asked(self, ask: Ask) -> None:
        """A request has come. Once for each, however often `choose` is asked."""
        group = self._who_is(ask.project)[0]
        for rule, counts in zip(self.plan.section.overflow, self._rules, strict=True):
            if _is_for(rule, ask.service, group):
                counts.add()

    def choose(self, ask: Ask, view: View, rng: random.Random, unix_s: float) -> int | None:
        """As `route`, within the plan. What it chooses is counted as sent there."""
        lane = self._lane(ask, unix_s)
        barred = lane.steady
        for name in lane.remotes:  # a share of a remote is the most that it gets
            if not _is_behind(lane, REMOTE + name):
                barred |= {name}
        index = route(_without(ask, barred), view, rng)
        if index is not None and lane.shares:
            index = self._balanced(ask, lane, barred, index, view, rng)
        if lane.rules:
            index = self._burst(ask, lane, index, view, rng)
        if index is not None:
            lane.counts.add()
            lane.counts.sent(self._replicas[view.replicas[index].id].site)
        return index

    def _balanced(
        self, ask: Ask, lane: _Lane, barred: frozenset[str], index: int, view: View, rng: random.Random
    ) -> int:
        chosen = view.replicas[index]
        site = self._replicas[chosen.id].site
        if _is_behind(lane, site) or _is_near(lane, site):
            return index
        behind = [s for s in lane.shares if _is_behind(lane, s)]
        others = [ids for s, ids in lane.sites.items() if s not in behind]
        other = route(_without(ask, barred.union(*others)), view, rng)
        if other is None:
            return index
        load = view.replicas[other]
        wait_s = expected_wait_s(load, ask.project, view.costs) - load.handicap_s
        longer_s = wait_s - (expected_wait_s(chosen, ask.project, view.costs) - chosen.handicap_s)
        return index if longer_s > self.plan.section.imbalance_s else other

    def _burst(self, ask: Ask, lane: _Lane, index: int | None, view: View, rng: random.Random) -> int | None:
        if index is not None and not self._replicas[view.replicas[index].id].ours:
            return index
        wait_s = self._own_wait_s(ask, lane, index, view)
        open_: dict[str, int] = {}  # remotes, and their rules
        for number, rule in lane.rules:
            late = wait_s > rule.wait_s if rule.after == "wait" else wait_s == math.inf
            if late and _has_share(rule, self._rules[number]):
                open_.setdefault(rule.remote, number)
        if not open_:
            return index
        closed = self._replicas.keys() - open_.keys()
        other = route(_without(ask, lane.barred | closed), view, rng)
        if other is None:
            return index
        load = view.replicas[other]
        if expected_wait_s(load, ask.project, view.costs) - load.handicap_s >= wait_s:
            return index
        self._rules[open_[load.id]].sent(load.id)
        return other

    def _own_wait_s(self, ask: Ask, lane: _Lane, index: int | None, view: View) -> float:
        """Until it would be served at the best of our own; what was chosen is hardly ever worse than that."""
        if index is None:
            return math.inf
        chosen_s = expected_wait_s(view.replicas[index], ask.project, view.costs)
        if chosen_s <= min((rule.wait_s for _, rule in lane.rules if rule.after == "wait"), default=math.inf):
            return chosen_s
        ours = [
            load
            for load in view.replicas
            if load.taking and load.id not in lane.steady and load.id not in ask.not_at
            and self._replicas[load.id].ours
        ]  # fmt: skip
        return min(expected_wait_s(load, ask.project, view.costs) for load in ours)

    # -- what the plan says

    def _lane(self, ask: Ask, unix_s: float) -> _Lane:
        if not 0 <= unix_s - self._looked_s < _PERIOD_S:
            self._looked_s = unix_s
            period = self.plan.calendar.at(unix_s)
            if period != self._period:
                self._period = period
                self._lanes.clear()
                self._counts.clear()
        who = self._who_is(ask.project)
        lane = self._lanes.get((ask.service, who))
        if lane is None:
            lane = self._lanes[ask.service, who] = self._make_lane(ask.service, *who)
        return lane

    def _make_lane(self, service: str, group: str, places: frozenset[str] | None) -> _Lane:
        barred = frozenset(
            name for name, r in self._replicas.items() if places is not None and r.place not in places
        )
        shares = self._shares(service, group)
        remotes = [name for name, r in self._replicas.items() if not r.ours and name not in barred]
        sites: dict[str, set[str]] = {}
        for name, r in self._replicas.items():
            sites.setdefault(r.site, set()).add(name)
        rules = [(i, r) for i, r in enumerate(self.plan.section.overflow) if _is_for(r, service, group)]
        return _Lane(
            barred=barred,
            steady=barred | {name for name in remotes if REMOTE + name not in shares},
            remotes=[name for name in remotes if REMOTE + name in shares],
            sites={site: frozenset(ids) for site, ids in sites.items()},
            shares=shares,
            rules=[(i, r) for i, r in rules if r.remote in remotes],
            counts=self._counts.setdefault((service, group), _Counts()),
        )

    def _shares(self, service: str, group: str) -> dict[str, float]:
        weights = self._weights(service, group)
        if weights is None:
            return {}
        found = {place: shares[self._period] for place, shares in weights.places.items()}
        found |= {REMOTE + name: shares[self._period] for name, shares in weights.remotes.items()}
        total = sum(found.values())
        return {site: share / total for site, share in found.items() if share} if total > 0 else {}

    def _weights(self, service: str, group: str) -> Weights | None:
        """Those for this class before those for all."""
        for wanted in dict.fromkeys((service, "")):
            for w in self.plan.section.weights:
                if w.service == wanted and (not w.groups or group in w.groups):
                    return w
        return None


def _is_behind(lane: _Lane, site: str) -> bool:
    """Its share has room for part of one more request at least."""
    return lane.counts.of(site) < lane.shares.get(site, 0.0) * (lane.counts.all + 1)


def _is_near(lane: _Lane, site: str) -> bool:
    """One more there is within what is tolerated. Who has no share is never near."""
    share = lane.shares.get(site, 0.0)
    return share > 0 and lane.counts.of(site) + 1 <= (share + SLACK) * (lane.counts.all + 1)


def _is_for(rule: Overflow, service: str, group: str) -> bool:
    return rule.service in ("", service) and (not rule.groups or group in rule.groups)


def _has_share(rule: Overflow, counts: _Counts) -> bool:
    """For one more."""
    return rule.most_share >= 1 or counts.of(rule.remote) + 1 <= rule.most_share * counts.all


def _without(ask: Ask, barred: frozenset[str]) -> Ask:
    if ask.not_at:
        barred |= ask.not_at
    return Ask(ask.project, ask.adapter, ask.prompt_tokens, ask.prefix, barred, ask.service)
