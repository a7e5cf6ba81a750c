"""What would let demand be served that nothing can serve in time: another target, or another place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stoa.planner.eligible import api_in_time, in_time
from stoa.planner.explain.changes import Change, applied, rounded_up
from stoa.planner.problem import Bucket, Fit, Group, Problem, Service

_ROOM = 1.1  # a target that is just kept leaves a replica no room for a second request
_TRIES = 6


def unserved(problem: Problem) -> list[int]:
    """Numbers of the buckets that nothing may and can serve."""
    groups = {g.name: g.places for g in problem.groups}
    return [
        k
        for k, b in enumerate(problem.buckets)
        if any(b.rates) and not groups[b.group] & _able_places(problem, k)
    ]


def ways_to_serve(problem: Problem) -> list[tuple[Change, ...]]:
    """Each lets all buckets be served: other targets, or a promise for fewer requests, or other places, or what it takes of
    them where one alone does not do. Empty if nothing does."""
    kept = [_by_targets(problem), _by_attainment(problem), _by_places(problem)]
    return list(dict.fromkeys(way for way in kept if way is not None))


def _able_places(problem: Problem, k: int) -> set[str]:
    """Where something answers in time, whether it may or not."""
    bucket = problem.buckets[k]
    service = _service(problem, bucket)
    able = {
        place
        for place, fit in _there(problem)
        if in_time(problem, bucket, service, fit, place, k)
    }  # fmt: skip
    return able | {a.place for a in problem.apis if api_in_time(problem, bucket, service, a)}


def _there(problem: Problem) -> Iterable[tuple[str, Fit]]:
    offered = {(o.place, o.machine) for o in problem.offers if o.limit != 0 and o.availability > 0}
    for place, machine in sorted(offered):
        for fit in problem.fits:
            if fit.machine == machine:
                yield place, fit


def _service(problem: Problem, bucket: Bucket) -> Service:
    return next(s for s in problem.services if s.name == bucket.service)


def _group(problem: Problem, bucket: Bucket) -> Group:
    return next(g for g in problem.groups if g.name == bucket.group)


# -- targets


@dataclass(frozen=True, slots=True)
class _Reached:
    """The targets that something can keep, where others are promised."""

    ttft_s: float
    tpot_s: float

    def stretch(self, service: Service) -> float:
        return max(self.ttft_s / service.ttft_s, self.tpot_s / service.tpot_s if self.tpot_s else 0.0)


def _by_targets(problem: Problem) -> tuple[Change, ...] | None:
    """The least that must be stretched, by service; places for buckets that no target helps."""
    room = _ROOM
    for _ in range(_TRIES):
        changes = _stretched(problem, room)
        after = applied(problem, changes)
        left = unserved(after)
        if left and all(_best(after, k) is None for k in left):
            more = _widened(after, left)
            return None if more is None else (*changes, *more)
        if not left:
            return changes
        room *= _ROOM
    return None


def _stretched(problem: Problem, room: float) -> tuple[Change, ...]:
    needed: dict[str, _Reached] = {}
    for k in unserved(problem):
        best = _best(problem, k)
        if best is not None:
            name = problem.buckets[k].service
            old = needed.get(name, best)
            needed[name] = _Reached(max(old.ttft_s, best.ttft_s), max(old.tpot_s, best.tpot_s))
    changes = []
    for service in problem.services:
        if (least := needed.get(service.name)) is not None:
            if least.ttft_s > service.ttft_s:
                changes.append(Change("ttft", service.name, rounded_up(room * least.ttft_s), service.ttft_s))
            if least.tpot_s > service.tpot_s:
                changes.append(Change("tpot", service.name, rounded_up(room * least.tpot_s), service.tpot_s))
    return tuple(changes)


def _best(problem: Problem, k: int) -> _Reached | None:
    """What comes nearest to the promise at places where the bucket may be computed."""
    bucket = problem.buckets[k]
    service, group = _service(problem, bucket), _group(problem, bucket)
    able = []
    for place, fit in _there(problem):
        tpot_s = _tpot_s(fit, bucket, service, k)
        fits = bucket.adapters_gib <= fit.adapters_gib and math.isfinite(tpot_s)
        if place in group.places and fit.model in service.models and fits:
            ttft_s = 0.0 if bucket.late else fit.ttft_s[k] + _latency_s(problem, bucket, place)
            able.append(_Reached(ttft_s, tpot_s))
    for api in problem.apis:
        may = api.model in service.models and api.place in group.places
        if may and bucket.prompt_tokens <= api.max_prompt_tokens:
            able.append(_Reached(api.ttft_s + _latency_s(problem, bucket, api.place), api.tpot_s))
    return min(able, key=lambda each: each.stretch(service), default=None)


def _by_attainment(problem: Problem) -> tuple[Change, ...] | None:
    """Late requests may make up half of what is not promised; a promise for less than half of all is none."""
    left = unserved(problem)
    changes = []
    for service in problem.services:
        mine = [k for k, b in enumerate(problem.buckets) if b.service == service.name]
        late, total = (sum(sum(problem.buckets[k].rates) for k in ks) for ks in (set(mine) & set(left), mine))
        if late:
            to = math.floor(1000 * (1 - 2 * late / total)) / 1000
            if not 0.5 <= to < service.attainment:
                return None
            changes.append(Change("attainment", service.name, to, service.attainment))
    return None if unserved(applied(problem, changes)) else tuple(changes)


def _latency_s(problem: Problem, bucket: Bucket, place: str) -> float:
    return problem.network.way_s(bucket.origin, place)


def _tpot_s(fit: Fit, bucket: Bucket, service: Service, k: int) -> float:
    """At which the replica could serve the bucket alone; infinite if it cannot, or nothing is known of it."""
    if math.isfinite(fit.load_s[k]):
        return 0.0  # the promise is kept
    if fit.profile is None or bucket.prompt_tokens + bucket.output_tokens > fit.profile.kv_tokens:
        return math.inf
    if bucket.output_tokens <= 1:
        return 0.0
    context = bucket.prompt_tokens + bucket.output_tokens / 2
    own_s = fit.profile.fixed_s + fit.profile.decode_row_s + fit.profile.context_token_s * context
    return own_s if own_s > service.tpot_s else 0.0


# -- places


def _by_places(problem: Problem) -> tuple[Change, ...] | None:
    """Places where the targets are kept; targets for buckets that are late everywhere."""
    late = {k for k in unserved(problem) if not _able_places(problem, k)}
    idle = (0.0,) * len(problem.periods)
    only = tuple(b if k in late else replace(b, rates=idle) for k, b in enumerate(problem.buckets))
    changes = _by_targets(replace(problem, buckets=only)) if late else ()
    if changes is None:
        return None
    after = applied(problem, changes)
    more = _widened(after, unserved(after))
    return None if more is None else (*changes, *more)


def _widened(problem: Problem, left: Sequence[int]) -> tuple[Change, ...] | None:
    """For each group one place at a time, the one that serves most of what is left."""
    changes: list[Change] = []
    todo = {k: _able_places(problem, k) for k in left}
    while todo:
        groups = {problem.buckets[k].group for k in todo}
        counts = [
            (-sum(place in able for k, able in todo.items() if problem.buckets[k].group == g), g, place)
            for g in sorted(groups)
            for place in sorted({p.name for p in problem.places})
        ]
        count, group, place = min(counts)
        if not count:
            return None
        rules = next(g.rules for g in problem.groups if g.name == group)
        changes.append(Change("places", group, place=place, rules=rules))
        todo = {k: a for k, a in todo.items() if problem.buckets[k].group != group or place not in a}
    return tuple(changes)
