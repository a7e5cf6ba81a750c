"""Draws a comparison as an SVG bar chart, without dependencies.

python benchmarks/plot.py docs/results/compare-134m.json docs/results/compare-134m.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NAMES = {"stoa": "Stoa", "vllm": "vLLM (CPU)", "peft": "transformers + PEFT", "llama.cpp": "llama.cpp"}
COLOURS = {"stoa": "#b5502b", "vllm": "#5b7a99", "peft": "#a9a48f", "llama.cpp": "#7d8a5c"}
MODES = {"base": "no adapters", "same": "one adapter", "distinct": "a different adapter per request"}
LEFT, BAR, GAP, WIDTH, ROOM = 150, 22, 26, 760, 110


def draw(report: dict) -> str:
    """Bars of the largest batch, grouped by mode."""
    batch = max(row["batch"] for row in report["rows"])
    rows = [row for row in report["rows"] if row["batch"] == batch]
    most = max(row["output_tok_s"] for row in rows)
    parts, y = [], 58
    for mode in dict.fromkeys(row["mode"] for row in rows):
        parts.append(f'<text x="16" y="{y}" font-weight="600">{MODES[mode]}</text>')
        y += 8
        for row in rows:
            if row["mode"] != mode:
                continue
            length = (WIDTH - LEFT - ROOM) * row["output_tok_s"] / most
            middle = y + BAR / 2 + 4
            parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{NAMES[row["engine"]]}</text>')
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 4}" fill="{COLOURS[row["engine"]]}"/>'
            )
            parts.append(
                f'<text x="{LEFT + length + 6:.1f}" y="{middle}">{row["output_tok_s"]:.0f} tok/s</text>'
            )
            y += BAR
        y += GAP
    title = f"{report['model']}, bf16, {batch} requests at once, 64 tokens in, 64 out, {report['machine']['cores']} cores"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{y}" fill="#fffdf8"/>'
        f'<text x="16" y="26" font-size="15" font-weight="600">{title}</text>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text())))
