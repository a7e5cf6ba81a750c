"""What the plans of examples/plan promised, and what came of it: on the day that they were made from, and on the next.

python -m benchmarks.planner.kept --spot DIR --out docs/results/planner-kept.json

The second day is tried again where the spot machines of one place after the other are there or gone as those of an AWS zone
were; else they come and go by chance, with the availability that is assumed. DIR is spot_traces.tar.xz unpacked.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.about import about
from examples.plan.inputs import EXAMPLES, HERE, Example

from stoa.planner.files import read_problem
from stoa.planner.files.replay import read_replay
from stoa.planner.plan import Plan
from stoa.planner.program import solve
from stoa.planner.prove import prove
from stoa.planner.prove.words import proof_json
from stoa.simulator import SpotTrace, read_spot

ZONE = "availability/1-node/aws-02-15-2023/us-west-2b_v100_1.json"
SCALE = 1000  # machines, when there are any: more than a plan asks for
DAYS = {"first day": ("0d", "1d"), "second day": ("1d", "2d")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--spot", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of examples, by commas")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began_s, zone = time.monotonic(), read_spot(args.spot / ZONE, scale=SCALE)
    chosen = [e for e in EXAMPLES if not args.only or e.name in args.only.split(",")]
    found = {e.name: measure(e, args.data / e.trace, zone) for e in chosen}
    report = {
        **about(),
        "minutes": round((time.monotonic() - began_s) / 60, 1),
        "zone": ZONE,
        "zone_there": round(sum(zone.capacity(60.0 * m) > 0 for m in range(1440)) / 1440, 3),
        "examples": found,
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(example: Example, trace: Path, zone: SpotTrace) -> dict[str, Any]:
    """The plan as `stoa plan` makes it, and a proof for each day and each loss."""
    path = HERE / example.name / "plan.toml"
    problem = read_problem(path)
    plan = solve(problem, gap=0.005, time_limit_s=60.0)
    replays = {day: read_replay(path, trace, problem, begin=b, until=u) for day, (b, u) in DAYS.items()}
    on_spot = dict.fromkeys(r.pool.place for r in plan.rented if r.purchase == "spot")
    trials: list[tuple[str, str, dict[str, SpotTrace]]] = [
        *((day, "", {}) for day in DAYS),
        *(("second day", place, {place: zone}) for place in on_spot),
    ]
    running = [sum(n for _, _, n in plan.machines(t)) for t in range(len(problem.periods))]
    return {
        "trace": trace.name,
        "usd": plan.costs.total,
        "hours": problem.horizon_h,
        "gap": plan.gap,
        "machines": [min(running), max(running)],
        "purchases": _by_purchase(plan),
        "proofs": [
            {"day": day, "spot_of": place, **proof_json(prove(plan, problem, replays[day], spot=spot))}
            for day, place, spot in trials
        ],
    }


def _by_purchase(plan: Plan) -> dict[str, float]:
    return {purchase: round(usd, 2) for purchase, usd in plan.costs.machines.items()}


if __name__ == "__main__":
    main()
