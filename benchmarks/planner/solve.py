"""How long a plan takes, and how good it is proved to be, on random problems of 3 places x 12 machine types x 4 purchase
options x 3 models x 24 periods x 60 buckets.

python -m benchmarks.planner.solve --out docs/results/planner-solve.json

A row: a problem, a time limit, and how long it took to come within the gap or up to the limit; the gap that was proved then,
or that there is no plan. Plans are also compared with the best bound that any plan of the same problem came with. Best on a
quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.about import about
from tests.planner.problems import draw

from stoa.planner.check import check
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem, Rules
from stoa.planner.program import NoPlan, sketch, solve
from stoa.planner.verify import verify

RATES = (8.0, 40.0, 200.0)  # requests a second, all buckets
LIMITS_S = (5.0, 60.0)
RULES = {
    "plain": Rules(),
    "survive_spot": Rules(survive_spot=True),
    "survive_place": Rules(survive_place=True, strain=1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", default=",".join(f"{r:g}" for r in RATES))
    parser.add_argument("--limits", default=",".join(f"{s:g}" for s in LIMITS_S), help="seconds")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--gap", type=float, default=0.001)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rates = [float(r) for r in args.rates.split(",")]
    limits = [float(s) for s in args.limits.split(",")]
    rows = []
    for rules, rate, seed in itertools.product(args.rules.split(","), rates, range(args.seeds)):
        rows += measure(rules, rate, seed, limits, args.gap)
    report = {
        **about(),
        "solver": f"HiGHS {version('highspy')}",
        "gap": args.gap,
        "summary": summary(rows),
        "rows": rows,
    }
    print(json.dumps(report["summary"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def problem_of(rules: str, rate: float, seed: int) -> Problem:
    """Where a place may be lost, requests that may be served at one place alone are of services that need not survive."""
    problem = draw(seed, rate=rate, rules=RULES[rules])
    if not problem.rules.survive_place:
        return problem
    bound = {g.name for g in problem.groups if len(g.places) == 1}
    stays = tuple(replace(s, name=f"{s.name} at home", survives=False) for s in problem.services)
    buckets = tuple(
        replace(b, service=f"{b.service} at home") if b.group in bound else b for b in problem.buckets
    )
    return check(replace(problem, services=(*problem.services, *stays), buckets=buckets))


def measure(rules: str, rate: float, seed: int, limits: Sequence[float], gap: float) -> list[dict[str, Any]]:
    """A sketch, then a plan for each limit. If there is no plan, its row has no cost."""
    problem = problem_of(rules, rate, seed)
    rows: list[dict[str, Any]] = []
    for limit_s in (None, *limits):
        began = time.perf_counter()
        plan: Plan | None
        try:
            plan = sketch(problem) if limit_s is None else solve(problem, gap=gap, time_limit_s=limit_s)
        except NoPlan:
            plan = None
        seconds = time.perf_counter() - began
        if plan is not None:
            verify(plan, problem)
        rows.append(
            {
                "rules": rules,
                "requests_s": rate,
                "seed": seed,
                "what": "sketch" if limit_s is None else f"{limit_s:g} s",
                "seconds": round(seconds, 3),
                "usd": None if plan is None else plan.costs.total,
                "bound_usd": None if plan is None else plan.bound_usd,
                "machines": None if plan is None else most_machines(plan),
                "method": None if plan is None else plan.method,
            }
        )
    bound = max((r["bound_usd"] for r in rows if r["bound_usd"] is not None), default=None)
    for row in rows:  # a later bound holds for all plans of the problem
        row["gap"] = None if row["usd"] is None else round(1 - row["bound_usd"] / row["usd"], 6)
        row["true_gap_most"] = None if row["usd"] is None else round(1 - bound / row["usd"], 6)
        print(json.dumps(row), flush=True)
    return rows


def most_machines(plan: Plan) -> int:
    """In the period that has the most."""
    return max((sum(counts) for counts in zip(*(r.counts for r in plan.rented), strict=True)), default=0)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By rules and by what was run: median and worst."""
    found: dict[str, Any] = {}
    for rules, what in dict.fromkeys((r["rules"], r["what"]) for r in rows):
        mine = [r for r in rows if (r["rules"], r["what"]) == (rules, what)]
        some = [r for r in mine if r["usd"] is not None]
        found[f"{rules}, {what}"] = {
            "problems": len(mine),
            "no_plan": len(mine) - len(some),
            "seconds_median": statistics.median(r["seconds"] for r in mine),
            "seconds_most": max(r["seconds"] for r in mine),
            "gap_median": statistics.median(r["gap"] for r in some) if some else None,
            "gap_most": max((r["gap"] for r in some), default=None),
            "true_gap_most": max((r["true_gap_most"] for r in some), default=None),
        }
    return found


if __name__ == "__main__":
    main()
