"""Names of a problem as Kubernetes, Ray and files bear them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stoa.planner.problem import Problem


@dataclass(frozen=True, slots=True)
class Names:
    """By name in the problem: lower case, digits and hyphens; no two alike."""

    place: Mapping[str, str]
    machine: Mapping[str, str]
    model: Mapping[str, str]

    @staticmethod
    def of(problem: Problem) -> Names:
        return Names(
            _slugs((p.name for p in problem.places), made="stoa-"),
            _slugs(m.name for m in problem.machines),
            _slugs(dict.fromkeys(f.model for f in problem.fits)),
        )


def label_value(text: str) -> str:
    """As Kubernetes and Ray take it, and no shell minds it."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)[:63].strip("-._")


def joined(*slugs: str) -> str:
    """One name of several: which parts it has can be told."""
    return "--".join(slugs)


def _slugs(names: Iterable[str], most: int = 24, made: str = "") -> dict[str, str]:
    """`made`: before names that are not as they were: "EU West 1" must not become a cloud's eu-west-1."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:most].strip("-") or "x"
        plain = plain if plain == name else f"{made}{plain}"
        slug, number = plain, 2
        while slug in found.values():
            slug, number = f"{plain}-{number}", number + 1
        found[name] = slug
    return found
