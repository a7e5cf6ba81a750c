"""What a plan is to survive: the loss of a place, or of all spot machines at one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stoa.planner.problem import Offer, Problem


@dataclass(frozen=True, slots=True)
class Loss:
    """`spot`: of the place's spot machines alone."""

    place: str
    spot: bool = False

    @property
    def name(self) -> str:
        """Of the world in which it has happened."""
        return f"without spot at {self.place}" if self.spot else f"without {self.place}"

    def takes(self, offer: Offer) -> bool:
        return offer.place == self.place and (offer.purchase == "spot" or not self.spot)


def losses(problem: Problem) -> tuple[Loss, ...]:
    """One at a time, and only of what is of use to somebody. Where nothing but spot is had, the place's loss is theirs."""
    return tuple(_losses(problem))


def _losses(problem: Problem) -> Iterator[Loss]:
    usable = {f.machine for f in problem.fits}
    offers = [o for o in problem.offers if o.machine in usable and o.limit != 0 and o.availability > 0]
    hosted = {a.place for a in problem.apis}
    rules = problem.rules
    for place in (p.name for p in problem.places):
        here = [o.purchase == "spot" for o in offers if o.place == place]
        if rules.survive_place and (here or place in hosted):
            yield Loss(place)
        if rules.survive_spot and any(here) and not (rules.survive_place and all(here)):
            yield Loss(place, spot=True)
