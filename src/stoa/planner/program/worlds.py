"""What may come, and what a plan must then still do: demand by scenario, the loss of a place, that of spot machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stoa.planner.losses import losses
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
    """First those that are likely, then losses. Services that could then not be served must not have `survives`."""
    margin = np.array([problem.margin(t) for t in range(len(problem.periods))])
    base = margin * np.array([b.rates for b in problem.buckets], np.float64).reshape(len(problem.buckets), -1)
    whole = np.zeros(len(options), np.bool_)
    usual = [
        World(s.name, base * s.factors, base / margin * s.factors * s.probability, whole, frozenset(), 1.0)
        for s in problem.likely
    ]
    survives = {s.name: s.survives for s in problem.services}
    kept, free = base * [[survives[b.service]] for b in problem.buckets], np.zeros_like(base)
    for loss in losses(problem):
        lost = np.array([loss.takes(offer) for offer, _ in options], np.bool_)
        gone = frozenset() if loss.spot else frozenset([loss.place])
        usual.append(World(loss.name, kept, free, lost, gone, problem.rules.strain))
    return tuple(usual)
