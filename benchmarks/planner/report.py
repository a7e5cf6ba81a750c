"""Puts results into docs/planner.md, between its marks: PYTHONPATH=benchmarks python -m benchmarks.planner.report"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import table

PAGE, RESULTS = Path("docs/planner.md"), Path("docs/results")


def melange(report: dict[str, Any]) -> str:
    rows = [
        (
            name, s["cases"], s["lower"], s["equal"], s["higher"], s["wrong"] + s["none"], percent(s["saving_mean"]),
            percent(s["saving_most"]), f"{s['ours_s_mean']:.3f}", f"{s['theirs_s_mean']:.3f}",
        )
        for name, s in (
            ("all", report["summary"]["all"]),
            *((f"{n} slices" if n != "1" else "1 slice", s) for n, s in report["summary"]["by_slices"].items()),
        )
    ]  # fmt: skip
    heads = (
        "a bucket in", "cases", "ours is lower", "equal", "higher", "theirs is none", "saved, mean", "most",
        "ours takes, s", "theirs, s",
    )  # fmt: skip
    late = report["summary"]["all"]["out_of_time"]
    return (
        f"{table(heads, rows)}\nTheirs {report['theirs']}, at most {report['time_limit_s']:g} s a case (reached in {late}); "
        f"ours on {report['solver']}."
    )


def baselines(report: dict[str, Any]) -> str:
    rows = [
        (
            name, s["cases"], s["lower"], s["equal"], s["higher"], percent(s["higher_most"], 3),
            f"{s['ratio_median']:.2f}", f"{s['ratio_mean']:.2f}", s["none_while_ours"],
        )
        for name, s in report["summary"].items()
        if s["cases"]
    ]  # fmt: skip
    heads = (
        "against", "problems", "ours is lower", "equal", "higher", "by at most", "ours / it, median", "mean",
        "it has no plan",
    )  # fmt: skip
    effort = f"{percent(report['gap'])}, in {report['time_limit_s']:g} s at most"
    return f"{table(heads, rows)}\nAll were planned to a gap of {effort}: by that gap ours may be higher."


def solve(report: dict[str, Any]) -> str:
    rows = [
        (
            name, s["problems"], f"{s['seconds_median']:.1f}", f"{s['seconds_most']:.1f}", percent(s["gap_median"], 2),
            percent(s["gap_most"], 2), percent(s["true_gap_most"], 2),
        )
        for name, s in report["summary"].items()
    ]  # fmt: skip
    heads = (
        "",
        "problems",
        "seconds, median",
        "most",
        "gap proved, median",
        "most",
        "most, by the best bound known",
    )
    return table(heads, rows)


ROBUST = {
    "ours": "**ours**: the plan as a floor, the autoscaler on top", "ours-reserved": "ours, reserved machines offered",
    "ours-on-demand": "ours, on demand alone", "no-plan": "the autoscaler without a plan",
    "spothedge-hpa": "SpotHedge with HPA", "spothedge-deadline": "SpotHedge, engines by deadline",
    "spothedge-hpa-deadline": "SpotHedge with HPA, engines by deadline",
    "melange": "Mélange for the peak + HPA", "melange-hourly": "Mélange by the hour + HPA",
    "melange-deadline": "Mélange for the peak + HPA, engines by deadline",
    "melange-hourly-deadline": "Mélange by the hour + HPA, engines by deadline",
    "hindsight-60min": "the program in hindsight, by the hour", "hindsight-60min-reserved": "the same, reserved offered",
    "hindsight-15min": "the program in hindsight, by quarters", "hindsight-15min-reserved": "the same, reserved offered",
}  # fmt: skip


def robust(report: dict[str, Any]) -> str:
    rows = [
        (
            ROBUST[name], f"{row['cost_usd']:.0f}", percent(row["attainment"], 2),
            percent(row["attainment_least"], 2),
        )
        for name, row in report["mean"].items()
    ]  # fmt: skip
    ratios = [
        (
            ROBUST[r["best"]], f"{r['ratio']:.2f}", f"{min(r['by_seed']):.2f} to {max(r['by_seed']):.2f}",
            f"{r['at_least']:g} / {r['aim']:g}",
        )
        for r in report["ratios"].values()
    ]  # fmt: skip
    heads = ("policy", "cost of the day, USD", "first tokens in time", "least of the seeds")
    compared = ("cost of ours / best that keeps the target", "", "by seed", "floor / aim")
    return f"{table(heads, rows)}\n{table(compared, ratios)}"


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


BLOCKS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "melange": (melange, "planner-melange"),
    "baselines": (baselines, "planner-baselines"),
    "solve": (solve, "planner-solve"),
    "robust": (robust, "planner-robust"),
}


def main() -> None:
    page = PAGE.read_text()
    for name, (tell, file) in BLOCKS.items():
        path = RESULTS / f"{file}.json"
        if not path.exists():
            print(f"no results for {name}")
            continue
        text = f"<!-- {name} -->\n{tell(json.loads(path.read_text())).strip()}\n<!-- /{name} -->"
        page = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, text=text: text, page, flags=re.DOTALL)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
