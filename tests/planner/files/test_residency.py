"""Rules of residency, and the groups they make."""

from __future__ import annotations

import pytest

from stoa.errors import ConfigError
from stoa.planner.files.document import Rule
from stoa.planner.files.residency import Residency, read_residency
from stoa.planner.problem import Place

PLACES = (
    Place("cellar", frozenset({"owned", "eu"})),
    Place("ireland", frozenset({"cloud", "eu"})),
    Place("virginia", frozenset({"cloud", "us"})),
)


def rule(name: str, *projects: str, only: tuple[str, ...] | None = None, never: tuple[str, ...] = ()) -> Rule:
    return Rule(name=name, projects=projects, only=only, never=never)


def places(found: Residency, project: str) -> set[str]:
    return set(found.groups[found.number(project)].places)


def test_a_project_may_go_where_all_its_rules_let_it() -> None:
    """Two rules intersect; a project without rules, or without a name, may go anywhere."""
    rules = [rule("europe", "bank*", only=("eu",)), rule("no cellar", "bank-2", never=("cellar",))]
    found = read_residency(rules, ["bank-1", "bank-2", "shop"], PLACES)
    assert places(found, "bank-1") == {"cellar", "ireland"}
    assert places(found, "bank-2") == {"ireland"}
    assert places(found, "shop") == places(found, "") == {"cellar", "ireland", "virginia"}
    groups = {group.name: group for group in found.groups}
    assert set(groups) == {"default", "europe", "europe + no cellar"}
    assert groups["europe"].projects == ("bank-1",)
    assert groups["europe + no cellar"].rules == ("europe: bank*: only eu", "no cellar: bank-2: never cellar")


def test_a_rule_for_everybody_holds_for_those_without_a_name_too() -> None:
    """Nobody slips past it."""
    found = read_residency([rule("home", "*", only=("owned",))], ["a"], PLACES)
    assert places(found, "") == places(found, "a") == {"cellar"}


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            [rule("home", "p", only=("owned",)), rule("away", "p*", never=("owned",)), rule("x", "p", never=("us",))],
            r"'home: p: only owned' and 'away: p\*: never owned' leave p no place",
        ),
        ([rule("a", "*", only=("eu",)), rule("b", "*", only=("us",))], "'a: .*' and 'b: .*' leave a project without a name"),
        (
            [rule("a", "p", never=("cellar",)), rule("b", "p", never=("ireland",)), rule("c", "p", never=("us",))],
            "'a: p: never cellar' and 'b: p: never ireland' and 'c: p: never us' leave p no place",
        ),
        ([rule("torn", "p", only=("owned",), never=("owned",))], "torn: p: only owned; never owned: that leaves no place"),
    ],
)  # fmt: skip
def test_rules_that_contradict_each_other_are_named(rules: list[Rule], says: str) -> None:
    """Two if two are enough, whether or not the project has ever asked for anything."""
    with pytest.raises(ConfigError, match=says):
        read_residency(rules, [], PLACES)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (rule("x", "p", only=("mars",)), r"rule\[0\].only: there is no place or label 'mars'; accepted: cellar, cloud, eu"),
        (rule("x", "p"), "says neither only nor never"),
        (rule("x", only=("eu",)), "names no projects"),
    ],
)  # fmt: skip
def test_a_rule_that_says_nothing_or_names_nothing_is_refused(broken: Rule, says: str) -> None:
    """A misspelt place must not open all of them."""
    with pytest.raises(ConfigError, match=says):
        read_residency([broken], ["p"], PLACES)


def test_two_rules_of_one_name_are_refused() -> None:
    """Messages could not tell them apart."""
    with pytest.raises(ConfigError, match="rule 'x' stands twice"):
        read_residency([rule("x", "p", only=("eu",)), rule("x", "q", only=("eu",))], [], PLACES)
