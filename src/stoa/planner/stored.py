"""A plan on disk, as JSON, and laid onto inputs that have changed since.

The file carries the periods' names and what each bucket was: without them a plan's numbers would mean nothing to inputs
that are read anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from stoa.checks import length, unique, within
from stoa.errors import ConfigError
from stoa.planner.plan import Costs, Plan, Rented, Route
from stoa.planner.problem import Bucket, Problem
from stoa.versioned import decode, read_bytes, write_bytes

VERSION = 1
WRITER = "stoa plan"
_Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Stored:
    """A plan with the names of its periods and its buckets. `made`: when and from what, for people."""

    plan: Plan
    periods: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    made: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reserved`: place, machine, count. `bound_usd` is null if nothing was proved."""

    version: int = VERSION
    made: str
    periods: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    rented: tuple[Rented, ...]
    reserved: tuple[tuple[str, str, _Count], ...]
    routes: tuple[Route, ...]
    costs: Costs
    bound_usd: float | None
    solve_s: float
    method: str


def named(plan: Plan, problem: Problem, made: str = "") -> Stored:
    """The plan with the names of its own problem."""
    return Stored(plan, tuple(p.name for p in problem.periods), problem.buckets, made)


# -- files


def read_stored(path: Path) -> Stored:
    """Raises ConfigError."""
    return parse_stored(read_bytes(path), str(path))


def write_stored(stored: Stored, path: Path) -> None:
    """In one step. Raises ConfigError."""
    write_bytes(to_json(stored), path)


def to_json(stored: Stored) -> bytes:
    plan = stored.plan
    file = _File(
        made=stored.made, periods=stored.periods, buckets=stored.buckets, rented=plan.rented,
        reserved=tuple((*key, count) for key, count in plan.reserved.items()), routes=plan.routes, costs=plan.costs,
        bound_usd=plan.bound_usd, solve_s=plan.solve_s, method=plan.method,
    )  # fmt: skip
    return msgspec.json.encode(file) + b"\n"  # what is not finite becomes null


def parse_stored(text: bytes | str, source: str) -> Stored:
    """Checked. Raises ConfigError that names the source and what is accepted."""
    file = decode(text, source, _File, VERSION, _check, WRITER)
    if msgspec.json.decode(text) != msgspec.json.decode(msgspec.json.encode(file)):
        raise ConfigError(
            f"{source}: a key is unknown or missing; accepted: what {WRITER} writes", param="plan"
        )
    reserved = {(place, machine): count for place, machine, count in file.reserved}
    bound_usd = -math.inf if file.bound_usd is None else file.bound_usd
    plan = Plan(file.rented, reserved, file.routes, file.costs, bound_usd, file.solve_s, file.method)
    return Stored(plan, file.periods, file.buckets, file.made)


def _check(file: _File) -> None:
    """ConfigError for wrong lengths, numbers that cannot be, and what stands twice."""
    unique("period", file.periods)
    unique("pool", (f"{r.pool} {r.purchase}" for r in file.rented))
    unique("commitment", (f"{names}" for *names, _ in file.reserved))
    unique("route", (f"{r.world!r} {r.bucket} {r.target!r}" for r in file.routes))
    for k, bucket in enumerate(file.buckets):
        within(f"buckets[{k}].tokens", min(bucket.prompt_tokens, bucket.output_tokens), 0, math.inf)
    for i, rented in enumerate(file.rented):
        length(f"rented[{i}].counts", rented.counts, len(file.periods))
        within(f"rented[{i}].counts", min(rented.counts, default=0), 0, math.inf)
    for i, route in enumerate(file.routes):
        within(f"routes[{i}].bucket", route.bucket, 0, len(file.buckets) - 1)
        length(f"routes[{i}].shares", route.shares, len(file.periods))
        for share in route.shares:
            within(f"routes[{i}].shares", share, 0, 1.001)
    for usd in (*file.costs.machines.values(), file.costs.api, file.costs.network):
        within("costs", usd, 0, math.inf)


# -- onto new inputs


def onto(stored: Stored, problem: Problem) -> Plan:
    """The plan in the order of the problem's periods and buckets. A bucket goes where the old one of its service, group and
    origin went that is nearest in size; one that has none goes nowhere. Nothing is checked, and costs stay what they were.
    ConfigError if the periods are not the same ones by name."""
    order = _order(stored.periods, tuple(p.name for p in problem.periods))
    plan = stored.plan
    rented = tuple(replace(r, counts=tuple(r.counts[t] for t in order)) for r in plan.rented)
    routes = tuple(
        replace(r, bucket=k, shares=tuple(r.shares[t] for t in order))
        for k, like in enumerate(_nearest(stored.buckets, problem.buckets))
        for r in plan.routes
        if r.bucket == like
    )
    return replace(plan, rented=rented, routes=routes)


def _order(old: tuple[str, ...], new: tuple[str, ...]) -> list[int]:
    """Where each new period stands among the old ones."""
    if set(old) != set(new):
        gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
        raise ConfigError(
            "the old plan's periods are not those of the new inputs"
            + (f"; only the plan has {_some(gone)}" if gone else "")
            + (f"; only the inputs have {_some(come)}" if come else "")
            + "; accepted: the same periods, or a plan without an old one",
            param="periods",
        )
    return [old.index(name) for name in new]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _nearest(old: Sequence[Bucket], new: Sequence[Bucket]) -> list[int]:
    """For each new bucket the old one that is most like it, -1 if there is none; of several, that at the same place."""
    found = []
    for k, b in enumerate(new):
        alike = [
            (_far(b, a), i != k, i)
            for i, a in enumerate(old)
            if (a.service, a.group, a.origin, a.late) == (b.service, b.group, b.origin, b.late)
        ]
        found.append(min(alike)[2] if alike else -1)
    return found


def _far(a: Bucket, b: Bucket) -> float:
    prompts = math.log1p(a.prompt_tokens) - math.log1p(b.prompt_tokens)
    return math.hypot(prompts, math.log1p(a.output_tokens) - math.log1p(b.output_tokens))
