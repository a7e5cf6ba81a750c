"""The mixed-integer program behind a plan, and how it is solved. Notation: docs/planner.md."""

from stoa.planner.program.search import NoPlan
from stoa.planner.program.solve import sketch, solve
from stoa.planner.program.view import Unservable

__all__ = ["NoPlan", "Unservable", "sketch", "solve"]
