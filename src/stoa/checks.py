"""Checks of names and numbers, whoever wrote them. All raise ConfigError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from stoa.errors import ConfigError


def unique(what: str, names: Iterable[str]) -> set[str]:
    """The names, none of which stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"the {what} {name!r} stands twice", param=f"{what}s")
        seen.add(name)
    return seen


def known(where: str, what: str, names: Iterable[str], there: Set[str]) -> None:
    for name in names:
        if name not in there:
            accepted = ", ".join(sorted(there)) or "none"
            raise ConfigError(f"{where} names the {what} {name!r}; accepted: {accepted}", param=f"{what}s")


def length(what: str, values: Sequence[object], wanted: int, of: str = "periods") -> None:
    if len(values) != wanted:
        raise ConfigError(f"{what}: {len(values)} entries for {wanted} {of}", param=of)


def within(what: str, value: float, least: float, most: float) -> None:
    """`what`: perhaps whose it is, and then the number's name: "here: rate"."""
    if not least <= value <= most:  # NaN too
        raise ConfigError(
            f"{what} is {value}; accepted: {least:g} to {most:g}", param=what.rpartition(": ")[2]
        )
