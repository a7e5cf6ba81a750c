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

from stoa.errors import ConfigError
from stoa.planner.plan import Costs, Plan, Pool, Rented, Route
from stoa.planner.problem import Problem, Purchase

VERSION = 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1.001)]
_Amount = Annotated[float, msgspec.Meta(ge=0)]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bucket was: whose requests, how large on average, and whether they may come late."""

    service: str
    group: str
    origin: str = ""
    prompt_tokens: _Amount
    output_tokens: _Amount
    late: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """A plan with the names of its periods and its buckets. `made`: when and from what, for people."""

    plan: Plan
    periods: tuple[str, ...]
    buckets: tuple[Asked, ...]
    made: str = ""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class _Rented(_Part, frozen=True, kw_only=True):
    place: str
    machine: str
    model: str
    pace: str = ""
    purchase: Purchase
    counts: tuple[_Count, ...]


class _Reserved(_Part, frozen=True, kw_only=True):
    place: str
    machine: str
    count: _Count


class _Pool(_Part, frozen=True, kw_only=True):
    place: str
    machine: str
    model: str
    pace: str = ""


class _Route(_Part, frozen=True, kw_only=True):
    """`to`: a pool, or the name of an API."""

    world: str
    bucket: _Count
    to: _Pool | str
    shares: tuple[_Share, ...]


class _Costs(_Part, frozen=True, kw_only=True):
    machines: dict[Purchase, _Amount]
    api: _Amount
    network: _Amount


class _File(_Part, frozen=True, kw_only=True):
    """`bound_usd` is not there if nothing was proved."""

    version: int
    made: str = ""
    periods: tuple[str, ...]
    buckets: tuple[Asked, ...]
    rented: tuple[_Rented, ...]
    reserved: tuple[_Reserved, ...]
    routes: tuple[_Route, ...]
    costs: _Costs
    bound_usd: float | None = None
    solve_s: _Amount = 0.0
    method: str = "milp"


class _Version(msgspec.Struct, frozen=True):
    version: int


def named(plan: Plan, problem: Problem, made: str = "") -> Stored:
    """The plan with the names of its own problem."""
    return Stored(plan, tuple(p.name for p in problem.periods), _asked(problem), made)


def _asked(problem: Problem) -> tuple[Asked, ...]:
    return tuple(
        Asked(
            service=b.service,
            group=b.group,
            origin=b.origin,
            prompt_tokens=b.prompt_tokens,
            output_tokens=b.output_tokens,
            late=b.late,
        )
        for b in problem.buckets
    )


# -- files


def read_stored(path: Path) -> Stored:
    """Raises ConfigError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the plan {path} cannot be read: {error.strerror}", param="plan") from None
    return parse_stored(text, str(path))


def write_stored(stored: Stored, path: Path) -> None:
    """In one step: whoever reads meanwhile finds the old file or the new one. Raises ConfigError."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(to_json(stored))
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", param="plan") from None


def to_json(stored: Stored) -> bytes:
    plan = stored.plan
    file = _File(
        version=VERSION,
        made=stored.made,
        periods=stored.periods,
        buckets=stored.buckets,
        rented=tuple(
            _Rented(
                place=r.pool.place,
                machine=r.pool.machine,
                model=r.pool.model,
                pace=r.pool.pace,
                purchase=r.purchase,
                counts=r.counts,
            )
            for r in plan.rented
        ),
        reserved=tuple(
            _Reserved(place=place, machine=machine, count=n) for (place, machine), n in plan.reserved.items()
        ),
        routes=tuple(
            _Route(world=r.world, bucket=r.bucket, to=_target(r.target), shares=r.shares) for r in plan.routes
        ),
        costs=_Costs(machines=dict(plan.costs.machines), api=plan.costs.api, network=plan.costs.network),
        bound_usd=plan.bound_usd if math.isfinite(plan.bound_usd) else None,
        solve_s=plan.solve_s,
        method=plan.method,
    )
    return msgspec.json.encode(file) + b"\n"


def _target(target: Pool | str) -> _Pool | str:
    if isinstance(target, str):
        return target
    return _Pool(place=target.place, machine=target.machine, model=target.model, pace=target.pace)


def parse_stored(text: bytes | str, source: str) -> Stored:
    """Checked. Raises ConfigError that names the source and what is accepted."""
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise ConfigError(f"{source}: version is {version}; accepted: {VERSION}", param="version")
        file = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{source}: {error}; accepted: a plan that stoa plan has written", param="plan"
        ) from None
    _check(file, source)
    return _stored(file)


def _check(file: _File, source: str) -> None:
    """Lengths, numbers of buckets, and what stands twice."""
    periods, buckets = len(file.periods), len(file.buckets)
    _unique(source, "periods", file.periods)
    _unique(source, "rented", [(r.place, r.machine, r.model, r.pace, r.purchase) for r in file.rented])
    _unique(source, "reserved", [(r.place, r.machine) for r in file.reserved])
    _unique(source, "routes", [(r.world, r.bucket, str(r.to)) for r in file.routes])
    for i, rented in enumerate(file.rented):
        _length(source, f"rented[{i}].counts", rented.counts, periods)
    for i, route in enumerate(file.routes):
        _length(source, f"routes[{i}].shares", route.shares, periods)
        if route.bucket >= buckets:
            at = f"routes[{i}].bucket"
            raise ConfigError(f"{source}: {at} is {route.bucket}; accepted: 0 to {buckets - 1}", param=at)


def _unique(source: str, at: str, names: Sequence[object]) -> None:
    seen: set[object] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise ConfigError(f"{source}: {at}[{i}] ({name}) stands twice", param=at)
        seen.add(name)


def _length(source: str, at: str, values: Sequence[object], periods: int) -> None:
    if len(values) != periods:
        raise ConfigError(f"{source}: {at} has {len(values)} entries for {periods} periods", param=at)


def _stored(file: _File) -> Stored:
    rented = tuple(Rented(_pool(r), r.purchase, r.counts) for r in file.rented)
    routes = tuple(
        Route(r.world, r.bucket, r.to if isinstance(r.to, str) else _pool(r.to), r.shares)
        for r in file.routes
    )
    plan = Plan(
        rented,
        {(r.place, r.machine): r.count for r in file.reserved},
        routes,
        Costs(file.costs.machines, file.costs.api, file.costs.network),
        -math.inf if file.bound_usd is None else file.bound_usd,
        file.solve_s,
        file.method,
    )
    return Stored(plan, file.periods, file.buckets, file.made)


def _pool(part: _Rented | _Pool) -> Pool:
    return Pool(part.place, part.machine, part.model, part.pace)


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
        for k, like in enumerate(_nearest(stored.buckets, _asked(problem)))
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


def _nearest(old: Sequence[Asked], new: Sequence[Asked]) -> list[int]:
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


def _far(a: Asked, b: Asked) -> float:
    prompts = math.log1p(a.prompt_tokens) - math.log1p(b.prompt_tokens)
    return math.hypot(prompts, math.log1p(a.output_tokens) - math.log1p(b.output_tokens))
