"""Cost of plans against what one would do without a planner, on random problems and on the examples.

python -m benchmarks.planner.baselines --out docs/results/planner-baselines.json

All survive the loss of any one place's spot machines, and keep the problem's residency, targets and margins. Other rules
(budgets, the loss of a place) are left out for all.

greedy          each bucket where it is cheapest, in whole machines, with spares for what may be lost: `greedy.py`
the rest        the best plan of some of the offers, planned by us, to the same gap; of "one cloud" the place counts that is
                cheapest by itself, also with everybody served there, whatever residency says
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.about import about
from benchmarks.planner.greedy import greedy
from tests.planner.problems import draw

from stoa.planner.files import read_problem
from stoa.planner.plan import Plan
from stoa.planner.problem import PURCHASES, Problem, Purchase, Rules
from stoa.planner.program import NoPlan, Unservable, solve
from stoa.planner.verify import verify

EXAMPLES = Path("examples/plan")
RATES = (1.0, 5.0, 25.0, 100.0, 200.0)  # requests a second
SAME = 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--gap", type=float, default=0.001)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each plan")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began_s = time.monotonic()
    rows = []
    for name, rate, problem in problems(args.cases):
        rows.append({"name": name, "requests_s": rate, **compare(problem, args.gap, args.seconds)})
        print(json.dumps(rows[-1]), flush=True)
    report = {
        **about(),
        "minutes": round((time.monotonic() - began_s) / 60, 1),
        "solver": f"HiGHS {version('highspy')}",
        "gap": args.gap,
        "time_limit_s": args.seconds,
        "summary": {way: summary(rows, way) for way in dict.fromkeys(way for r in rows for way in r["usd"])},
        "greedy_by_rate": {
            f"{rate:g}": summary([r for r in rows if r["requests_s"] == rate], "greedy") for rate in RATES
        },
        "rows": rows,
    }
    print(json.dumps(report["summary"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def problems(cases: int) -> Iterable[tuple[str, float | None, Problem]]:
    """Name, requests a second of random ones, problem."""
    for seed in range(cases):
        yield f"random {seed}", RATES[seed % len(RATES)], surviving(random_problem(seed))
    for path in sorted(EXAMPLES.glob("*/plan.toml")):
        yield path.parent.name, None, surviving(read_problem(path))


def surviving(problem: Problem) -> Problem:
    return replace(
        problem, rules=Rules(survive_spot=True, strain=problem.rules.strain, margin=problem.rules.margin)
    )


def random_problem(seed: int) -> Problem:
    """Sizes take turns: from one place and one model to three of each, from a request a second to two hundred."""
    return draw(
        seed,
        places=1 + seed % 3,
        cards=(3, 6, 12)[seed % 3],
        purchases=4 - (seed // 3) % 2,
        models=1 + seed % 3,
        periods=(1, 4, 8)[(seed // 2) % 3],
        buckets=(6, 12, 24)[(seed // 5) % 3],
        rate=RATES[seed % len(RATES)],
        rules=Rules(margin=(1.3,) * (1, 4, 8)[(seed // 2) % 3]) if seed % 4 == 3 else Rules(),
        api=seed % 2 == 1,
    )


def compare(problem: Problem, gap: float, seconds: float) -> dict[str, Any]:
    """USD of each way; None where there is no plan of that kind."""

    def usd(some: Iterable[Problem]) -> float | None:
        return min((p.costs.total for p in map(planned, some) if p is not None), default=None)

    def planned(problem: Problem) -> Plan | None:
        try:
            plan = solve(problem, gap=gap, time_limit_s=seconds)
        except (NoPlan, Unservable):
            return None
        verify(plan, problem)
        return plan

    ours, rival = planned(problem), greedy(problem)
    return {
        "size": [len(problem.places), len(problem.offers), len(problem.periods), len(problem.buckets)],
        "ours_usd": None if ours is None else ours.costs.total,
        "bound_usd": None if ours is None else ours.bound_usd,
        "gap": None if ours is None else ours.gap,
        "solve_s": None if ours is None else round(ours.solve_s, 3),
        "usd": {
            "greedy": None if rival is None else rival.costs.total,
            **{way: usd(some) for way, some in ways(problem).items()},
        },
    }


def ways(problem: Problem) -> dict[str, list[Problem]]:
    """Of each, the cheapest counts."""
    clouds = sorted({o.place for o in problem.offers if o.purchase != "owned"})
    beside = {
        f"all clouds, {kind.replace('_', '-')}, and what is owned": [only(problem, "owned", kind)]
        for kind in PURCHASES
        if kind != "owned"
    }
    free = anywhere(problem)
    return {
        "all clouds, on-demand": [only(problem, "on_demand")],
        **beside,
        "hosted models alone": [replace(problem, offers=())] if problem.apis else [],
        "one cloud, on-demand": [only(problem, "on_demand", at=c) for c in clouds],
        "one cloud, on-demand, residency dropped": [only(free, "on_demand", at=c) for c in clouds],
        "one cloud, all its ways of paying, and what is owned": [
            only(problem, *PURCHASES, at=c) for c in clouds
        ],
    }


def only(problem: Problem, *kinds: Purchase, at: str | None = None) -> Problem:
    """The problem with machines bought in these ways, at one place (owned ones wherever they are), without hosted models."""
    offers = (o for o in problem.offers if o.purchase in kinds)
    return replace(
        problem, apis=(), committed={}, offers=tuple(o for o in offers if at in (None, o.place) or o.purchase == "owned")
    )  # fmt: skip


def anywhere(problem: Problem) -> Problem:
    """Everybody may be served at every place."""
    places = frozenset(p.name for p in problem.places)
    return replace(problem, groups=tuple(replace(g, places=places) for g in problem.groups))


def summary(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """Where the way has a plan, is ours lower, equal or higher? `higher_most`: by which share at most, to be compared with
    the gap."""
    mine = [(r["ours_usd"], r["usd"].get(way)) for r in rows]
    ratios = [ours / usd for ours, usd in mine if ours is not None and usd is not None]
    return {
        "cases": len(ratios),
        "lower": sum(x < 1 - SAME for x in ratios),
        "equal": sum(abs(x - 1) <= SAME for x in ratios),
        "higher": sum(x > 1 + SAME for x in ratios),
        "higher_most": round(max(0.0, max(ratios, default=1.0) - 1), 7),
        "ratio_mean": round(statistics.mean(ratios), 4) if ratios else None,
        "ratio_median": round(statistics.median(ratios), 4) if ratios else None,
        "none_while_ours": sum(ours is not None and usd is None for ours, usd in mine),
        "ours_none": sum(ours is None and usd is not None for ours, usd in mine),
    }


if __name__ == "__main__":
    main()
