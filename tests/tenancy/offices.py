"""A clock that is set by hand, and an office of administrators with a few things in it."""

from __future__ import annotations

from stoa.storage.database import Database
from stoa.tenancy.office import Office, open_office

START = 1_800_000_000
ORG = "default"


class ManualClock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Ticking(ManualClock):
    """A second later at each look, so that things have an order."""

    def __call__(self) -> float:
        self.now += 1
        return self.now


def ticking_office(database: Database) -> Office:
    return open_office(database, clock=Ticking())
