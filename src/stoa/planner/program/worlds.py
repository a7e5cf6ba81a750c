"""What may come, and what a plan must then still do: demand by scenario, the loss of a place, that of spot machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.plan import USUAL, without, without_spot
from stoa.planner.problem import Offer, Problem
from stoa.programs import Flags, Floats

Options = Sequence[tuple[Offer, int]]


@dataclass(frozen=True, slots=True)
class World:
    """What may come: demand as forecast or as a scenario has it, or a loss. `rates` [K, T], requests a second for which
    there must be machines; `paid` [K, T], those that are reckoned with in the cost. Machines of options `lost` [M] and
    targets at places `gone` are not there."""

    name: str
    rates: Floats
    paid: Floats
    lost: Flags
    gone: frozenset[str]
    strain: float


def worlds(problem: Problem, options: Options) -> tuple[World, ...]:
    """First those that are likely, then losses."""
    margin = np.array([problem.margin(t) for t in range(len(problem.periods))])
    base = np.array([b.rates for b in problem.buckets], np.float64).reshape(len(problem.buckets), -1)
    lost_nothing = np.zeros(len(options), np.bool_)
    usual = [
        World(name, base * factors * margin, base * factors * likely, lost_nothing, frozenset(), 1.0)
        for name, likely, factors in _scenarios(problem)
    ]
    return (*usual, *_losses(problem, options, base * margin))


def _scenarios(problem: Problem) -> list[tuple[str, float, Floats]]:
    if not problem.scenarios:
        return [(USUAL, 1.0, np.ones(len(problem.periods)))]
    return [(s.name, s.probability, np.array(s.factors)) for s in problem.scenarios]


def _losses(problem: Problem, options: Options, rates: Floats) -> list[World]:
    """A world for each place that may be lost, and for the spot machines of each place. Services that could then not be
    served must not have `survives`."""
    survives = {s.name: s.survives for s in problem.services}
    needed = np.array([[survives[b.service]] for b in problem.buckets])
    kept, free = rates * needed, np.zeros_like(rates)
    found = []
    if problem.rules.survive_place:
        for place in [p.name for p in problem.places]:
            lost = np.array([o.place == place for o, _ in options])
            if lost.any() or any(a.place == place for a in problem.apis):
                gone = frozenset([place])
                found.append(World(without(place), kept, free, lost, gone, problem.rules.strain))
    if problem.rules.survive_spot:
        for place in [p.name for p in problem.places]:
            lost = np.array([o.place == place and o.purchase == "spot" for o, _ in options])
            if lost.any() and not (problem.rules.survive_place and _only_spot(place, options)):
                found.append(World(without_spot(place), kept, free, lost, frozenset(), problem.rules.strain))
    return found


def _only_spot(place: str, options: Options) -> bool:
    return all(o.purchase == "spot" for o, _ in options if o.place == place)
