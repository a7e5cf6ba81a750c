"""Cost of plans against Mélange's integer program (arXiv 2404.14527), on its own problem: one cloud, on demand, one period.

python -m benchmarks.planner.melange --checkout CHECKOUT --python PEERS/melange/bin/python \
    --out docs/results/planner-melange.json

CHECKOUT is a copy of their release (tyler-griggs/melange-release, with melange/solver.py), PEERS what setup_peers.sh has
made. Their program is also solved by HiGHS, as we read it in the paper: so much of the time is the solver's. All take turns,
case by case, on one thread each. An answer counts only if its GPUs can serve the case: theirs are checked with buckets
parted as one likes, which is easier than their own rules, ours by `verify`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.about import about
from benchmarks.planner.melange_program import KINDS, Case, cheapest, draw_case, lacking, problem_of

from stoa.planner.program import solve
from stoa.planner.verify import verify

SAME_USD = 1e-6
LACKING = 1e-4  # of a GPU


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, required=True, help="of their release")
    parser.add_argument("--python", type=Path, required=True, help="that has pulp and pandas")
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=20.0, help="that theirs may take for a case")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with released(args.checkout, args.python, args.seconds) as theirs:
        for seed in range(args.cases):
            rows.append(compare(seed, theirs, args.seconds))
            print(json.dumps(rows[-1]), flush=True)
    report = {
        **about(),
        "solver": f"HiGHS {version('highspy')}",
        "time_limit_s": args.seconds,
        "summary": summary(rows),
        "rows": rows,
    }
    print(json.dumps(report["summary"]["all"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


class Released:
    """Their program in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def answer(self, case: Case) -> dict[str, Any]:
        gpus = {name: {"cost": usd, "tputs": case.tputs[name].tolist()} for name, usd in case.usd.items()}
        asked = {"gpus": gpus, "shares": case.shares.tolist(), "rate": case.rate, "slices": case.slices}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"their solver ended on {asked}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def released(checkout: Path, python: Path, seconds: float) -> Iterator[Released]:
    script = Path(__file__).parent.parent / "peers" / "melange_ilp.py"
    command = [str(python), str(script), str(checkout), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Released(process)
        assert process.stdin is not None
        process.stdin.close()


def compare(seed: int, theirs: Released, seconds: float) -> dict[str, Any]:
    case = draw_case(seed)
    problem = problem_of(case)
    began = time.perf_counter()
    plan = solve(problem, gap=0.0)
    ours_s = time.perf_counter() - began
    verify(plan, problem)
    began = time.perf_counter()
    restated = cheapest(case, seconds)
    restated_s = time.perf_counter() - began
    answer = theirs.answer(case)
    counts = answer["counts"]
    lack = lacking(case, counts) if counts is not None else None
    return {
        "seed": seed,
        "kind": KINDS[seed % len(KINDS)],
        "types": len(case.usd),
        "buckets": case.shares.size,
        "slices": case.slices,
        "requests_s": case.rate,
        "zeros": any((t == 0).any() for t in case.tputs.values()),
        "ours_usd": plan.costs.total,
        "ours_bound_usd": plan.bound_usd,
        "ours_s": round(ours_s, 4),
        "theirs_usd": answer["usd"],
        "theirs_s": round(answer["seconds"], 4),
        "restated_usd": None if restated is None else restated.usd,
        "restated_s": round(restated_s, 4),
        "in_time": answer["seconds"] < 0.98 * seconds,
        "lacking": lack,
        "verdict": verdict(plan.costs.total, answer["usd"], lack),
    }


def verdict(ours: float, theirs: float | None, lack: float | None) -> str:
    """Of our cost: lower, equal, higher. "none": they found nothing; "wrong": what they found is not enough."""
    if theirs is None or lack is None:
        return "none"
    if lack > LACKING:
        return "wrong"
    return "equal" if abs(ours - theirs) <= SAME_USD else "lower" if ours < theirs else "higher"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all cases, and by how finely buckets are sliced."""
    by_slices = sorted({r["slices"] for r in rows})
    return {
        "all": part(rows),
        "by_slices": {str(s): part([r for r in rows if r["slices"] == s]) for s in by_slices},
        "by_kind": {kind: part([r for r in rows if r["kind"] == kind]) for kind in KINDS},
    }


def part(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {"cases": len(rows)}
    for word in ("lower", "equal", "higher", "wrong", "none"):
        found[word] = sum(r["verdict"] == word for r in rows)
    compared = [r for r in rows if r["verdict"] in ("lower", "equal", "higher")]
    savings = [1 - r["ours_usd"] / r["theirs_usd"] for r in compared if r["theirs_usd"]]
    return found | {
        "saving_mean": round(statistics.mean(savings), 5) if savings else None,
        "saving_most": round(max(savings), 5) if savings else None,
        "saving_least": round(min(savings), 9) if savings else None,
        "out_of_time": sum(not r["in_time"] for r in rows),
        "ours_s_mean": round(statistics.mean(r["ours_s"] for r in rows), 4) if rows else None,
        "ours_s_most": max((r["ours_s"] for r in rows), default=None),
        "restated_s_mean": round(statistics.mean(r["restated_s"] for r in rows), 4) if rows else None,
        "restated_s_most": max((r["restated_s"] for r in rows), default=None),
        "restated_apart": sum(
            r["restated_usd"] is None
            or r["theirs_usd"] is None
            or abs(r["restated_usd"] - r["theirs_usd"]) > SAME_USD
            for r in rows
        ),
        "theirs_s_mean": round(statistics.mean(r["theirs_s"] for r in rows), 4) if rows else None,
        "theirs_s_most": max((r["theirs_s"] for r in rows), default=None),
    }


if __name__ == "__main__":
    main()
