"""Cost of plans against what one would do without a planner: never worse, on random problems and on the examples.

python -m benchmarks.planner.baselines --out docs/results/planner-baselines.json

greedy          each bucket where its tokens are cheapest, in whole machines; with the purchase options that suit it best
PURCHASE alone  the best plan of machines bought in one way (planned by us, to the same gap), or of hosted models alone
owned + ...     the same beside the machines that are owned
single cloud    the best plan of machines on demand at one place, whichever place is cheapest, planned by us; where residency
                forbids every one, another that does not keep it is given as well

Baselines have the problem's residency, targets and margins. Promises that most of them cannot keep (the loss of a place
or of spot machines, ramps, budgets, carbon) are left out for all, ours too; a problem that has some is planned once more
with them, for what it costs beside the single cloud, which never has them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.planner.greedy import greedy
from tests.planner.problems import draw

from stoa.bench.machine import machine_facts
from stoa.planner.files import read_problem
from stoa.planner.plan import Plan
from stoa.planner.problem import Offer, Problem, Purchase, Rules
from stoa.planner.program import NoPlan, Unservable, solve
from stoa.planner.verify import verify

ALONE: dict[str, tuple[Purchase, ...]] = {
    "on-demand alone": ("on_demand",),
    "reserved alone": ("reserved",),
    "spot alone": ("spot",),
    "owned alone": ("owned",),
    "owned + on-demand": ("owned", "on_demand"),
    "owned + reserved": ("owned", "reserved"),
    "owned + spot": ("owned", "spot"),
}
EXAMPLES = Path("examples/plan")
SAME = 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--gap", type=float, default=0.001)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each plan")
    parser.add_argument("--examples", type=Path, default=EXAMPLES, help="folder of folders with plan.toml")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for name, problem in problems(args.cases, args.examples):
        rows.append(compare(name, problem, args.gap, args.seconds))
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "machine": machine_facts(),
        "command": "python -m benchmarks.planner.baselines",
        "solver": f"HiGHS {version('highspy')}",
        "gap": args.gap,
        "time_limit_s": args.seconds,
        "summary": summary(rows),
        "rows": rows,
    }
    print(json.dumps(report["summary"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def problems(cases: int, examples: Path) -> Iterable[tuple[str, Problem]]:
    for seed in range(cases):
        yield f"random {seed}", random_problem(seed)
    for path in sorted([*examples.glob("*/plan.toml"), *examples.glob("*/plan.yaml")]):
        yield path.parent.name, read_problem(path)


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
        rate=(1.0, 5.0, 25.0, 100.0, 200.0)[seed % 5],
        rules=Rules(margin=(1.3,) * (1, 4, 8)[(seed // 2) % 3]) if seed % 4 == 3 else Rules(),
        api=seed % 2 == 1,
    )


def compare(name: str, problem: Problem, gap: float, seconds: float) -> dict[str, Any]:
    """USD of each way; None where there is no plan of that kind."""

    def planned(problem: Problem | None) -> Plan | None:
        if problem is None:
            return None
        try:
            plan = solve(problem, gap=gap, time_limit_s=seconds)
        except (NoPlan, Unservable):
            return None
        verify(plan, problem)
        return plan

    free = replace(problem, rules=Rules(margin=problem.rules.margin))
    ours = planned(free)
    usd = {
        "greedy": _usd(greedy(free)),
        **{way: _usd(planned(only(free, kinds))) for way, kinds in ALONE.items()},
        "hosted models alone": _usd(planned(only(free, (), hosted=True))) if free.apis else None,
        "single cloud on demand": _single(free, planned),
    }
    if usd["single cloud on demand"] is None:
        usd["single cloud, residency dropped"] = _single(anywhere(free), planned)
    with_rules = planned(problem) if problem.rules != free.rules else None
    return {
        "name": name,
        "size": [len(problem.places), len(problem.offers), len(problem.periods), len(problem.buckets)],
        "ours_usd": _usd(ours),
        "bound_usd": None if ours is None else ours.bound_usd,
        "gap": None if ours is None else ours.gap,
        "solve_s": None if ours is None else round(ours.solve_s, 3),
        "with_rules_usd": _usd(with_rules),
        "usd": usd,
    }


def _usd(plan: Plan | None) -> float | None:
    return None if plan is None else plan.costs.total


def only(problem: Problem, purchases: Sequence[Purchase], *, hosted: bool = False) -> Problem | None:
    """The problem with machines bought in these ways, and what is committed to already. None if there is nothing to buy."""
    offers = [limited for o in problem.offers if (limited := _offer(problem, o, purchases)) is not None]
    if not hosted and not any(o.limit != 0 for o in offers):
        return None
    return replace(problem, offers=tuple(offers), apis=problem.apis if hosted else ())


def _offer(problem: Problem, offer: Offer, purchases: Sequence[Purchase]) -> Offer | None:
    if offer.purchase in purchases:
        return offer
    held = problem.committed.get((offer.place, offer.machine), 0) if offer.purchase == "reserved" else 0
    return replace(offer, limit=held) if held else None


def anywhere(problem: Problem) -> Problem:
    """Everybody may be served at every place."""
    places = frozenset(p.name for p in problem.places)
    return replace(problem, groups=tuple(replace(g, places=places) for g in problem.groups))


def _single(problem: Problem, planned: Callable[[Problem | None], Plan | None]) -> float | None:
    """The cheapest place by itself. Projects that may not be served there make it none."""
    found = []
    for place in problem.places:
        there = only(problem, ("on_demand",))
        if there is not None:
            offers = tuple(o for o in there.offers if o.place == place.name)
            found.append(_usd(planned(replace(there, offers=offers, committed={}))) if offers else None)
    return min((usd for usd in found if usd is not None), default=None)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each baseline: where it has a plan, is ours lower, equal or higher? `higher_most`: by which share at most, to be
    compared with the gap."""
    found = {}
    for way in dict.fromkeys(way for r in rows for way in r["usd"]):
        mine = [(r["ours_usd"], r["usd"].get(way)) for r in rows]
        ratios = [ours / usd for ours, usd in mine if ours is not None and usd is not None]
        found[way] = {
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
    return found


if __name__ == "__main__":
    main()
