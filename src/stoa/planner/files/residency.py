"""Rules of where requests may be computed, and the groups of projects that are under the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations

from stoa.errors import ConfigError
from stoa.planner.files.document import Rule
from stoa.planner.problem import Group, Place

DEFAULT = "default"  # projects that no rule names


@dataclass(frozen=True, slots=True)
class Residency:
    """`number`: of a project's group. Projects that nobody has heard of are matched by the rules' patterns too."""

    groups: tuple[Group, ...]
    rules: tuple[Rule, ...]
    sets: Mapping[tuple[int, ...], int]  # which rules apply -> number of the group

    def number(self, project: str) -> int:
        return self.sets[rules_of(self.rules, project)]


def rules_of(rules: Sequence[Rule], project: str) -> tuple[int, ...]:
    """Numbers of the rules that name a project."""
    return tuple(i for i, rule in enumerate(rules) if any(fnmatchcase(project, p) for p in rule.projects))


def read_residency(rules: Sequence[Rule], projects: Iterable[str], places: Sequence[Place]) -> Residency:
    """Rules that name the same project are kept all at once. ConfigError for an unknown place or label, and for rules that
    together leave a project no place: it names two that contradict each other."""
    names = [rule.name for rule in rules]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"rule {double!r} stands twice", param="rule")
    allowed = [_allowed(i, rule, places) for i, rule in enumerate(rules)]
    literal = {p for rule in rules for p in rule.projects if not set(p) & set("*?[")}
    everyone = sorted(literal | set(projects) | {""})
    sets: dict[tuple[int, ...], list[str]] = {}
    for project in everyone:
        sets.setdefault(rules_of(rules, project), []).append(project)
    everywhere = frozenset(place.name for place in places)
    groups = []
    for numbers, members in sets.items():
        left = everywhere.intersection(*(allowed[i] for i in numbers))
        if not left and everywhere:
            raise _contradiction(
                rules, allowed, numbers, next((m for m in members if m), "a project without a name")
            )
        groups.append(
            Group(
                " + ".join(rules[i].name for i in numbers) or DEFAULT,
                left,
                tuple(m for m in members if m),
                tuple(describe(rules[i]) for i in numbers),
            )
        )
    return Residency(tuple(groups), tuple(rules), {numbers: i for i, numbers in enumerate(sets)})


def describe(rule: Rule) -> str:
    only = "" if rule.only is None else f"only {', '.join(rule.only)}"
    never = f"never {', '.join(rule.never)}" if rule.never else ""
    return f"{rule.name}: {', '.join(rule.projects)}: {'; '.join(filter(None, (only, never)))}"


def places_of(names: Iterable[str], places: Sequence[Place], at: str) -> frozenset[str]:
    """Places that are called so or have that label. ConfigError for a word that is neither."""
    found: set[str] = set()
    for name in names:
        matching = {p.name for p in places if p.name == name or name in p.labels}
        if not matching:
            known = sorted({p.name for p in places} | {label for p in places for label in p.labels})
            raise ConfigError(
                f"{at}: there is no place or label {name!r}; accepted: {', '.join(known) or 'none is given'}",
                param=at,
            )
        found |= matching
    return frozenset(found)


def _allowed(number: int, rule: Rule, places: Sequence[Place]) -> frozenset[str]:
    at = f"rule[{number}]"
    if not rule.projects:
        raise ConfigError(f"{at}: {rule.name} names no projects", param=f"{at}.projects")
    if rule.only is None and not rule.never:
        raise ConfigError(f"{at}: {rule.name} says neither only nor never", param=at)
    every = frozenset(p.name for p in places)
    only = every if rule.only is None else places_of(rule.only, places, f"{at}.only")
    left = only - places_of(rule.never, places, f"{at}.never")
    if not left:
        raise ConfigError(f"{at}: {describe(rule)}: that leaves no place", param=at)
    return left


def _contradiction(
    rules: Sequence[Rule], allowed: Sequence[frozenset[str]], numbers: Sequence[int], project: str
) -> ConfigError:
    """Of two rules if any two contradict each other, else of all of them."""
    pair = next(((i, j) for i, j in combinations(numbers, 2) if not allowed[i] & allowed[j]), None)
    which = numbers if pair is None else pair
    texts = " and ".join(f"{describe(rules[i])!r}" for i in which)
    return ConfigError(f"the rules {texts} leave {project} no place", param="rule")
