"""A disturbed run as an SVG drawing: first tokens over time, replicas below, and a line for each fault."""

from __future__ import annotations

import math
from typing import Any

WIDTH, LEFT, RIGHT, TOP, HIGH, LOW, GAP = 960, 60, 150, 56, 230, 90, 30
COLOURS = {
    "kill_engine": "#b5502b", "kill_actor": "#d07b52", "kill_node": "#7a1f1f", "notice": "#5b7a99",
    "cut_network": "#8a6fa8", "kill_controller": "#a9a48f",
}  # fmt: skip
NAMES = {
    "kill_engine": "engine killed", "kill_actor": "its supervisor killed", "kill_node": "node lost",
    "notice": "notice of preemption", "cut_network": "network cut", "kill_controller": "controller killed",
}  # fmt: skip


def draw(report: dict[str, Any]) -> str:
    rows, faults, timeline = report["requests"], report["faults"], report["timeline"]
    end_s = max(row["ended_s"] for row in rows)
    bottom = TOP + HIGH + GAP + LOW

    def x(at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s

    def y(seconds: float) -> float:  # 10 ms to 10 s, logarithmic
        return TOP + HIGH * (1 - (math.log10(min(max(seconds, 0.01), 10)) + 2) / 3)

    parts = [
        f'<line x1="{x(f["at_s"]):.1f}" x2="{x(f["at_s"]):.1f}" y1="{TOP}" y2="{bottom}" '
        f'stroke="{COLOURS[f["kind"]]}" stroke-width="1" opacity="0.55"/>'
        for f in faults
    ]
    for seconds, name in ((0.01, "10 ms"), (0.1, "0.1 s"), (1, "1 s"), (10, "10 s")):
        parts.append(f'<text x="{LEFT - 8}" y="{y(seconds) + 4:.1f}" text-anchor="end">{name}</text>')
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(seconds):.1f}" y2="{y(seconds):.1f}" stroke="#e4ddd0"/>'
        )
    for row in rows:
        colour = "#d00" if row["error"] or not row["same"] else "#333"
        parts.append(
            f'<circle cx="{x(row["at_s"]):.1f}" cy="{y(row["ttft_s"]):.1f}" r="1.6" fill="{colour}"/>'
        )
    parts += _replicas(timeline, x, TOP + HIGH + GAP)
    for i, (kind, colour) in enumerate(COLOURS.items()):
        count = report["summary"]["faults"].get(kind, 0)
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 14 + 18 * i}" fill="{colour}">{count} x {NAMES[kind]}</text>'
        )
    s = report["summary"]
    title = f"{s['requests']} requests of {report['trace']}: {s['lost']} lost, {s['different']} answered differently"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 34}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{bottom + 34}" fill="#fffdf8"/>'
        f'<text x="16" y="22" font-size="15" font-weight="600">{title}</text>'
        f'<text x="16" y="42">time to first token of each request; below, ready replicas</text>'
        + "".join(parts)
        + f'<text x="{WIDTH - RIGHT}" y="{bottom + 20}" text-anchor="end">{end_s:.0f} s</text></svg>\n'
    )


def _replicas(timeline: list[dict[str, float]], x: Any, top: float) -> list[str]:
    most = max([point.get("ready", 0.0) for point in timeline] + [1.0])
    points = [(x(p["t_s"]), top + LOW * (1 - p["ready"] / most)) for p in timeline if "ready" in p]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    marks = [
        f'<text x="{LEFT - 8}" y="{top + LOW * (1 - n / most) + 4:.1f}" text-anchor="end">{n}</text>'
        for n in range(int(most) + 1)
    ]
    return [*marks, f'<polyline points="{path}" fill="none" stroke="#7d8a5c" stroke-width="2"/>']
