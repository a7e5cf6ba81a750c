"""A plan, for people: what it does and why, what it costs, how sure that is; and what would allow one where there is none.

words.py       the explanation, and the same as JSON; sections.py, certainty.py: its parts; facts.py, work.py: figures;
               text.py: tables
values.py      what one more of something scarce would save; safety.py: what promises cost, and ways of buying save
infeasible.py  the cheapest change that allows a plan; elastic.py, targets.py: how it is found; changes.py: what it may be
"""

from __future__ import annotations

from stoa.planner.explain.changes import Change, applied
from stoa.planner.explain.infeasible import cheapest_change, in_words, ways_out
from stoa.planner.explain.safety import Bought, safety
from stoa.planner.explain.values import Served, Values, Worth, values
from stoa.planner.explain.words import Reckoned, as_json, explain, reckon

__all__ = [
    "Bought", "Change", "Reckoned", "Served", "Values", "Worth", "applied", "as_json", "cheapest_change", "explain",
    "in_words", "reckon", "safety", "values", "ways_out",
]  # fmt: skip
