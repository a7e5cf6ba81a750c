"""Puts results into docs/planner.md and examples/plan/README.md, between their marks.

PYTHONPATH=benchmarks python -m benchmarks.planner.report
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from report import table

RESULTS, PAGE, EXAMPLES = Path("docs/results"), Path("docs/planner.md"), Path("examples/plan/README.md")


def melange(report: dict[str, Any]) -> str:
    rows = [
        (
            name, s["cases"], s["lower"], s["equal"], s["higher"], s["wrong"] + s["none"], percent(s["saving_mean"]),
            percent(s["saving_most"]), f"{s['ours_s_mean']:.3f}", f"{s['restated_s_mean']:.3f}", f"{s['theirs_s_mean']:.3f}",
        )
        for name, s in (
            ("all", report["summary"]["all"]),
            *((f"{n} slices" if n != "1" else "1 slice", s) for n, s in report["summary"]["by_slices"].items()),
        )
    ]  # fmt: skip
    heads = (
        "a bucket in", "cases", "ours is lower", "equal", "higher", "theirs is none", "saved, mean", "most",
        "ours takes, s", "theirs by HiGHS, s", "theirs as released, s",
    )  # fmt: skip
    every = report["summary"]["all"]
    return (
        f"{table(heads, rows)}\nAs released it is solved by CBC, a process for each case, in at most "
        f"{report['time_limit_s']:g} s (reached in {every['out_of_time']}); by {report['solver']} its cost is another in "
        f"{every['restated_apart']} cases."
    )


def baselines(report: dict[str, Any]) -> str:
    heads = (
        "ours is lower", "equal", "higher", "by at most", "ours / it, median", "mean", "it has no plan",
        "ours has none",
    )  # fmt: skip
    rows = [(way, *_compared(s)) for way, s in report["summary"].items() if s["cases"]]
    rates = [(rate, *_compared(s)) for rate, s in report["greedy_by_rate"].items() if s["cases"]]
    return (
        f"{table(('against', 'problems', *heads), rows)}\n"
        f"{table(('greedy, at requests a second', 'problems', *heads), rates)}\n"
        f"All were planned to a gap of {percent(report['gap'])}, in {report['time_limit_s']:g} s at most: by what was not "
        f"proved then ours may be higher."
    )


def _compared(s: dict[str, Any]) -> tuple[Any, ...]:
    return (
        s["cases"], s["lower"], s["equal"], s["higher"], percent(s["higher_most"]), f"{s['ratio_median']:.2f}",
        f"{s['ratio_mean']:.2f}", s["none_while_ours"], s["ours_none"],
    )  # fmt: skip


def solve(report: dict[str, Any]) -> str:
    rows = [
        (
            name.replace("_", " "), s["problems"], s["no_plan"], f"{s['seconds_median']:.1f}", f"{s['seconds_most']:.1f}",
            percent(s["gap_median"], 2), percent(s["gap_most"], 2), percent(s["true_gap_most"], 2),
        )
        for name, s in report["summary"].items()
    ]  # fmt: skip
    heads = (
        "", "problems", "no plan", "seconds, median", "most", "gap proved, median", "most", "most, by the best bound known",
    )  # fmt: skip
    return table(heads, rows)


ROBUST = {
    "ours": "**ours**: the plan as a floor, the autoscaler on top", "no-plan": "the autoscaler without a plan",
    "ours-on-demand": "**ours**, on demand alone", "no-plan-on-demand": "the autoscaler without a plan, on demand alone",
    "spothedge": "SpotHedge with its own scaler", "spothedge-hpa": "SpotHedge with HPA",
    "spothedge-sageserve": "SpotHedge with a forecast + ILP", "melange": "base for the busiest hour + HPA, on demand",
    "melange-hourly": "base by the hour + HPA, on demand", "hindsight-60min": "the program in hindsight, by the hour",
    "hindsight-15min": "the program in hindsight, by quarters", "bound": "clairvoyant bound",
}  # fmt: skip
OURS = {"ours": "ours", "ours-on-demand": "ours on demand"}
UNLIKE = {"melange-with-spot": "; ours has spot machines, it has none"}


def robust(report: dict[str, Any]) -> str:
    mean, tuning = report["mean"], report["tuning"]
    rows = [
        (
            _policy(name), f"{mean[name]['cost_usd']:.0f}", percent(mean[name].get("attainment"), 2),
            percent(mean[name].get("attainment_least"), 2),
        )
        for kind in ROBUST
        for name in (kind, f"{kind}-oracle")
        if name in mean
    ]  # fmt: skip
    ratios = [
        (
            f"{OURS[r['ours']]} / {_policy(r['best'])}{UNLIKE.get(kind, '')}", f"{r['ratio']:.2f}",
            f"{min(r['by_seed']):.2f} to {max(r['by_seed']):.2f}", "{:g} / {:g}".format(*r["aims"]) if r["aims"] else "",
        )
        for kind, r in report["ratios"].items()
    ]  # fmt: skip
    heads = ("policy", "cost of the day, USD", "first tokens in time", "least of the seeds")
    return (
        f"{table(heads, rows)}\n{table(('cost', 'ratio', 'by seed', 'floor / aim'), ratios)}\n"
        f"Each rival was tuned with {tuning['runs']} runs of the first day, on from where [elasticity](elasticity.md)'s "
        f"search had ended; in rows marked \\* with {tuning['oracle_runs']} more, of the very day that is measured (first "
        f"seed). Margins in hindsight are the best of {tuning['tries']} runs. All took {report['minutes']:.0f} minutes."
    )


def _policy(name: str) -> str:
    base = name.removesuffix("-oracle")
    return ROBUST[base] + (" \\*" if base != name else "")


def kept(report: dict[str, Any]) -> str:
    rows = [row for name, plan in report["examples"].items() for row in _kept(name, plan)]
    heads = (
        "", "USD in 30 days", "machines at a time", "promised", "first day", "second day", "second day, spot as traced",
        "machines cost", "by the request",
    )  # fmt: skip
    gap = max(plan["gap"] for plan in report["examples"].values())
    return (
        f"{table(heads, rows)}\nThe plans are proved to be within {percent(gap)} of the cheapest. Costs are those of the "
        f"second day, against what the plan says of it.\nSpot as traced: machines of one place are there or gone as in AWS "
        f"us-west-2b in February 2023, which had some for {percent(report['zone_there'], 0)} of the day."
    )


def _kept(name: str, plan: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    first, second, *lost = plan["proofs"]
    low, high = plan["machines"]
    machines = f"{low}" if low == high else f"{low} to {high}"
    every = range(len(first["services"]))
    for i in every:
        service = first["services"][i]
        mine = [percent(p["services"][i]["kept"]) for p in (first, second)]
        traced = ", ".join(f"{percent(p['services'][i]['kept'])} ({p['spot_of']})" for p in lost)
        told = (f"{plan['usd']:,.0f}", machines, _more(second, "machines"), _more(second, "by_request"))
        usd, count, cost, paid = told if i == 0 else ("",) * 4
        label = name if len(every) == 1 else f"{name}: {service['service']}"
        yield label, usd, count, percent(service["promised"], 0), *mine, traced, cost, paid


def _more(proof: dict[str, Any], what: str) -> str:
    promised = proof["promised_usd"][what]
    return f"{100 * (proof['usd'][what] / promised - 1):+.1f} %" if promised else ""


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


BLOCKS: dict[str, tuple[Callable[[dict[str, Any]], str], Path]] = {
    "melange": (melange, PAGE),
    "baselines": (baselines, PAGE),
    "solve": (solve, PAGE),
    "robust": (robust, PAGE),
    "kept": (kept, EXAMPLES),
}


def main() -> None:
    for name, (tell, page) in BLOCKS.items():
        path = RESULTS / f"planner-{name}.json"
        if not path.exists():
            print(f"no results for {name}")
            continue
        text = f"<!-- {name} -->\n{tell(json.loads(path.read_text())).strip()}\n<!-- /{name} -->"
        marks = f"<!-- {name} -->.*?<!-- /{name} -->"
        page.write_text(re.sub(marks, lambda _, text=text: text, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
