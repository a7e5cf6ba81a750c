"""Puts results into docs/elasticity.md, between its marks: python benchmarks/elasticity_report.py"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import table

PAGE, RESULTS = Path("docs/elasticity.md"), Path("docs/results")
COSTS = {
    "static": "static peak, on demand", "hpa": "Kubernetes HPA on concurrency", "knative": "Knative KPA",
    "ray": "Ray Serve's default autoscaler", "rate": "SkyServe's request rate, on demand",
    "sageserve": "forecast + ILP (SageServe's kind)", "ours-arrival": "ours, on demand, engines by arrival",
    "hpa-deadline": "HPA, engines by deadline", "sageserve-deadline": "forecast + ILP, engines by deadline",
    "ours": "**ours, on demand only**", "clairvoyant": "a clairvoyant plan, run (one seed)",
    "bound": "clairvoyant bound, on demand",
    "spothedge": "SkyServe SpotHedge", "spothedge-hpa": "SpotHedge's placement with HPA",
    "ours-spot-arrival": "ours, engines by arrival", "spothedge-deadline": "SpotHedge, engines by deadline",
    "spothedge-hpa-deadline": "SpotHedge's placement with HPA, engines by deadline",
    "ours-spot": "**ours**", "clairvoyant-spot": "a clairvoyant plan, run (one seed)", "bound-spot": "clairvoyant bound",
}  # fmt: skip
REACTIVE = ("hpa", "knative", "ray", "rate")


def live(report: dict[str, Any]) -> str:
    s = report["summary"]
    faults = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in s["faults"].items())
    return (
        f"Of {s['requests']} requests **{s['lost']} were lost and {s['different']} answered differently**, under {faults}. "
        f"First tokens: mean {1e3 * s['ttft_mean_s']:.0f} ms, p99 {1e3 * s['ttft_p99_s']:.0f} ms; the longest pause in an "
        f"answer was {s['longest_pause_s']:.2f} s."
    )


def failover(*reports: dict[str, Any]) -> str:
    rows = []
    for report in reports:
        work = report["workload"]
        rows += [
            (
                work["streams"], row["fault"], row["moved"], row["different"], f"{row['pause_ms']:.0f}",
                f"{row['prefill_ms']:.0f}", f"{row['pause_per_prefill']:.2f}",
            )
            for row in report["rows"]
        ]  # fmt: skip
    heads = (
        "streams on each", "fault", "streams moved", "answered differently", "longest pause, median, ms",
        "one prefill of its tokens, ms", "ratio",
    )  # fmt: skip
    more = 100 * (reports[0]["readiness"]["ratio"] - 1)
    return (
        f"{table(heads, rows)}\nBeing ready for it, while nothing happens, takes {more:+.1f} % of the time."
    )


def costs(report: dict[str, Any]) -> str:
    mean = report["mean"]
    rows = [
        (
            text, f"{mean[name]['cost_usd']:.0f}", f"{mean[name]['machine_hours']:.0f}",
            f"{100 * mean[name]['attainment']:.2f} %" if "attainment" in mean[name] else "",
            f"{100 * mean[name]['availability']:.3f} %" if "availability" in mean[name] else "",
        )
        for name, text in COSTS.items()
        if name in mean
    ]  # fmt: skip
    heads = ("policy", "cost, USD", "machine-hours", "TTFT attainment", "availability")
    compared = [(text, f"{ratio:.2f}", aims) for text, ratio, aims in _ratios(report)]
    return f"{table(heads, rows)}\n{table(('ratio', '', 'floor / aim'), compared)}"


def _ratios(report: dict[str, Any]) -> list[tuple[str, float, str]]:
    usd = {name: row["cost_usd"] for name, row in report["mean"].items()}
    hours = {name: row["machine_hours"] for name, row in report["mean"].items()}
    first = {
        name: rows[0] for name, rows in report["seeds"].items() if rows
    }  # the seed that plans were made for
    spot, dear = first["ours-spot"]["cost_usd"], first["ours"]["machine_hours"]
    return [
        ("cost, ours / static peak on demand", usd["ours-spot"] / usd["static"], "0.45 / 0.35"),
        ("cost, ours / SkyServe SpotHedge", usd["ours-spot"] / usd["spothedge"], "0.95 / 0.85"),
        ("cost, ours / SpotHedge's placement with HPA", usd["ours-spot"] / usd["spothedge-hpa"], ""),
        ("the same, its engines by deadline too", usd["ours-spot"] / usd["spothedge-hpa-deadline"], ""),
        ("cost, ours / clairvoyant bound", usd["ours-spot"] / usd["bound-spot"], "1.25 / 1.1"),
        ("cost, ours / clairvoyant plan, run", spot / first["clairvoyant-spot"]["cost_usd"], ""),
        ("hours without spot, ours / best tuned reactive", hours["ours"] / min(hours[n] for n in REACTIVE), "0.8 / 0.7"),
        ("the same, its engines by deadline too", hours["ours"] / hours["hpa-deadline"], ""),
        ("hours without spot, ours / forecast + ILP", hours["ours"] / hours["sageserve"], "0.95 / 0.85"),
        ("the same, its engines by deadline too", hours["ours"] / hours["sageserve-deadline"], ""),
        ("hours without spot, ours / clairvoyant bound", hours["ours"] / hours["bound"], "1.3 / 1.15"),
        ("hours without spot, ours / clairvoyant plan, run", dear / first["clairvoyant"]["machine_hours"], ""),
    ]  # fmt: skip


def worlds(*reports: dict[str, Any]) -> str:
    """One row for each world."""
    rows = []
    for r in sorted(reports, key=lambda r: (r["startup_s"], r["factor"])):
        mean, seeds = r["mean"], r["seeds"]
        usd, hours = mean["ours-spot"]["cost_usd"], mean["ours"]["machine_hours"]
        hedged = min(row["cost_usd"] for name, row in mean.items() if name.startswith("spothedge"))
        reactive = min(
            row["machine_hours"] for name, row in mean.items() if name.startswith(("hpa", "ray", "knative"))
        )
        kept = [row["attainment"] for name in ("ours", "ours-spot") for row in seeds[name]]
        rows.append(
            (
                f"{2.5 * r['factor']:.0f}", f"{r['startup_s']:.0f}", len(seeds["ours"]),
                f"{usd / mean['static']['cost_usd']:.2f}",
                f"{usd / hedged:.2f}", f"{usd / mean['bound-spot']['cost_usd']:.2f}", f"{hours / reactive:.2f}",
                f"{hours / mean['bound']['machine_hours']:.2f}", f"{100 * min(kept):.2f} %",
            )
        )  # fmt: skip
    heads = (
        "requests/s", "startup, s", "seeds", "cost / static", "cost / best of SpotHedge", "cost / bound", "hours / HPA",
        "hours / bound", "least attainment of ours",
    )  # fmt: skip
    return table(heads, rows)


def simulated(report: dict[str, Any]) -> str:
    rows = [
        (name, report["live"][key], report["simulated"][key], f"{100 * report['apart'][key]:+.1f} %")
        for key, name in (
            ("ttft_mean_s", "TTFT, mean, s"), ("ttft_p99_s", "TTFT, p99, s"), ("replica_s", "cost, replica-seconds"),
        )
    ]  # fmt: skip
    return table(("", "live", "simulated", "apart"), rows)


def router(report: dict[str, Any]) -> str:
    heads = tuple(report["rows"][0])
    decision = ", ".join(f"{name}: {value}" for name, value in report["decision_us"].items())
    return f"{table(heads, [tuple(row.values()) for row in report['rows']])}\nA decision takes, in µs: {decision}."


def coldstart(*reports: dict[str, Any]) -> str:
    rows = [
        (
            report["model"]["name"], row["start"], f"{report['floor']['floor_s']:.2f}", f"{row['whole_s']:.2f}",
            f"{row['times_floor']:.2f}",
        )
        for report in reports
        for row in report["rows"]
    ]  # fmt: skip
    return table(("model", "start", "floor, s", "first token after, s", "times the floor"), rows)


BLOCKS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "live": (live, ("elastic-live",)),
    "failover": (failover, ("failover", "failover-single")),
    "costs": (costs, ("elasticity",)),
    "worlds": (
        worlds,
        ("elasticity", "elasticity-x4", "elasticity-x40", "elasticity-x400", "elasticity-300s"),
    ),
    "simulated": (simulated, ("simulated-live",)),
    "router": (router, ("router",)),
    "coldstart": (coldstart, ("coldstart-134m", "coldstart-1.1b")),
}


def main() -> None:
    page = PAGE.read_text()
    for name, (tell, files) in BLOCKS.items():
        found = [RESULTS / f"{file}.json" for file in files]
        reports = [json.loads(path.read_text()) for path in found if path.exists()]
        if not reports:
            print(f"no results for {name}")
            continue
        gap = "" if name == "live" else "\n"
        text = f"<!-- {name} -->{gap}{tell(*reports).strip()}{gap}<!-- /{name} -->"
        page = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, text=text: text, page, flags=re.DOTALL)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
