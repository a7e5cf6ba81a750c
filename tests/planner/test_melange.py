"""Plans against Mélange's own formulation, on its own problem: one cloud, on demand, one period."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.planner.melange_program import Case, cheapest, draw_case, lacking, problem_of

from stoa.planner.program import Unservable, solve
from stoa.planner.verify import verify


@pytest.mark.parametrize("seed", range(12))
def test_no_case_costs_more_than_melange_s(seed: int) -> None:
    """Shares of requests instead of whole slices: what their plan can do ours can, so ours costs the same or less."""
    case = draw_case(seed, most_buckets=8)
    theirs = cheapest(case, 10.0)
    assert theirs is not None
    problem = problem_of(case)
    ours = solve(problem, gap=0.0)
    verify(ours, problem)
    assert ours.costs.total <= theirs.usd + 1e-6
    assert lacking(case, theirs.counts) < 1e-6


def test_the_published_example_costs_less_in_shares() -> None:
    """Their example takes three A10G and one A100 in whole buckets; a third of one bucket moved, and one A10G is enough."""
    case = Case(
        {"A10G": 1.01, "A100-80GB": 3.67},
        {"A10G": np.array([[2.0, 1.0], [5.0, 2.0]]), "A100-80GB": np.array([[20.0, 20.0], [40.0, 20.0]])},
        np.array([[0.2, 0.1], [0.5, 0.2]]),
        30.0,
        1,
    )
    theirs = cheapest(case)
    assert theirs is not None
    assert theirs.usd == pytest.approx(6.7)
    assert theirs.counts == {"A10G": 3, "A100-80GB": 1}
    assert solve(problem_of(case), gap=0.0).costs.total == pytest.approx(1.01 + 3.67)


def test_fewer_gpus_than_a_case_needs_are_found_out() -> None:
    """The check of answers sees one GPU missing, and what no GPU can serve."""
    case = draw_case(2, most_buckets=8)
    theirs = cheapest(case)
    assert theirs is not None
    none = dict.fromkeys(theirs.counts, 0)
    assert lacking(case, none) > 0
    dead = replace(case, tputs={name: np.zeros_like(t) for name, t in case.tputs.items()})
    assert lacking(dead, theirs.counts) == np.inf
    assert cheapest(dead) is None
    with pytest.raises(Unservable):
        solve(problem_of(dead))
