"""A plan as one base model's fleet asks it: which period, which place, which group, how many replicas."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import msgspec

from stoa.errors import ConfigError
from stoa.fleet.policies.calendar import Calendar
from stoa.fleet.policies.contract import ANY, FleetPlan, Section, Target, calendar_of
from stoa.fleet.policies.facts import Market

_ZONE = re.compile(r"(.+?)(?:[a-z]|-[a-z0-9])")  # a region, and what its zones are told apart by


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Replicas at a place in a market, of whatever machines: a fleet's replicas are all alike."""

    place: str
    market: Market
    replicas: tuple[int, ...]  # by period
    most: float
    sure: tuple[float, ...]  # of them, by period: what the plan counts on


@dataclass(frozen=True, slots=True, eq=False)
class ModelPlan:
    """Make it by `of`. `file`: what it was made of, with this model's section alone. `read_s`: Unix time; of two plans the
    later one holds."""

    file: FleetPlan
    model: str
    machine: str
    read_s: float
    section: Section
    calendar: Calendar
    pools: tuple[PoolPlan, ...]
    remotes: frozenset[str]  # those it has a word for
    hosts: Mapping[str, str]  # places, by the remote that stands for their replicas
    _places: Mapping[str, str] = field(repr=False)  # by zone
    _regions: Mapping[str, str] = field(repr=False)  # places, by region
    _groups: Mapping[str, str] = field(repr=False)  # by project
    _allowed: Mapping[str, frozenset[str]] = field(repr=False)  # by group; those of "*" are not in it

    @staticmethod
    def of(file: FleetPlan, model: str, *, machine: str = "", read_s: float = 0.0) -> ModelPlan:
        """`machine`: the type that replicas run on. Where the plan does not know it, it is taken as the only one. Raises
        ConfigError if the plan has nothing to say of the model, or leaves open which of several machines is meant."""
        section = file.models.get(model)
        if section is None:
            accepted = ", ".join(sorted(file.models)) or "none"
            raise ConfigError(f"the plan has no model {model!r}; it has {accepted}", param="plan")
        kinds = sorted({t.machine for t in section.targets})
        if len(kinds) > 1 and machine not in kinds:
            raise ConfigError(
                f"the plan has {model} on several kinds of machine, each a fleet of its own: say which this one runs on, "
                f"--machine {' or '.join(kinds)}",
                param="machine",
            )
        targets = [t for t in section.targets if len(kinds) == 1 or t.machine == machine]
        hosts = {remote: p.name for p in file.places for remote in p.remotes}
        named = {name for w in section.weights for name in w.remotes} | {r.remote for r in section.overflow}
        return ModelPlan(
            file=msgspec.structs.replace(file, models={model: section}),
            model=model,
            machine=machine,
            read_s=read_s,
            section=section,
            calendar=calendar_of(file),
            pools=_pools(targets, len(file.periods)),
            remotes=frozenset(named | section.daily_usd.keys()) | hosts.keys(),
            hosts=hosts,
            _places={zone: p.name for p in file.places for zone in (p.name, *p.zones, *p.regions)},
            _regions={region: p.name for p in file.places for region in p.regions},
            _groups={project: g.name for g in file.groups for project in g.projects},
            _allowed={g.name: frozenset(g.places) for g in file.groups if ANY not in g.places},
        )

    def place_of(self, zone: str) -> str:
        """ "": the plan knows no such zone."""
        if (known := self._places.get(zone)) is not None:
            return known
        named = _ZONE.fullmatch(zone)
        return self._regions.get(named[1], "") if named is not None else ""

    def group_of(self, project: str) -> str:
        """ "": the plan has no groups."""
        return self._groups.get(project) or self._groups.get(ANY, "")

    def confines(self, project: str) -> frozenset[str] | None:
        """Places where the project's requests may be served: those of its group and of every rule that names it; None:
        anywhere."""
        found = self._allowed.get(self.group_of(project))
        for rule in self.file.rules:
            if any(fnmatchcase(project, pattern) for pattern in rule.projects):
                found = frozenset(rule.places) if found is None else found & frozenset(rule.places)
        return found

    @property
    def has_residency(self) -> bool:
        """Whether some project may not be served everywhere."""
        return bool(self._allowed or self.file.rules)

    def projects(self) -> tuple[str, ...]:
        """Words for projects that it uses: ids, and patterns of rules."""
        found = (*self._groups, *(pattern for rule in self.file.rules for pattern in rule.projects))
        return tuple(dict.fromkeys(word for word in found if word != ANY))

    def period(self, period: int) -> str:
        return self.file.periods[period].name


def confined_key(places: frozenset[str]) -> str:
    """Places as one text, for counts of requests that are confined to them."""
    return "\n".join(sorted(places))


def places_of_key(key: str) -> frozenset[str]:
    return frozenset(key.split("\n")) - {""}


def _pools(targets: list[Target], periods: int) -> tuple[PoolPlan, ...]:
    found: dict[tuple[str, Market], PoolPlan] = {}
    for t in targets:
        market: Market = "spot" if t.market == "spot" else "on_demand"
        old = found.get((t.place, market), PoolPlan(t.place, market, (0,) * periods, 0, (0.0,) * periods))
        counts = tuple(a + b for a, b in zip(old.replicas, t.replicas, strict=True))
        sure = tuple(a + b * t.availability for a, b in zip(old.sure, t.replicas, strict=True))
        most = old.most + (math.inf if t.most is None else t.most)
        found[t.place, market] = PoolPlan(t.place, market, counts, most, sure)
    return tuple(found.values())
