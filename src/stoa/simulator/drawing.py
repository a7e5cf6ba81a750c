"""Panels, lines and areas of SVG drawings, one above the other over a common axis. Without dependencies.

Heights are those of the upper edge of a panel; x are pixels, y shares of a panel's height or values up to its `most`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDTH, LEFT, RIGHT, TOP, PANEL, GAP = 960, 70, 150, 60, 130, 34
INK, PAPER, GRID = "#333", "#fffdf8", "#e4ddd0"
SPOT, ON_DEMAND = "#7d8a5c", "#5b7a99"  # colours of how machines are paid for


def drawing(title: str, panels: int, parts: Sequence[str]) -> str:
    height = panel_top(panels - 1) + PANEL + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}"><rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>'
        f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def panel_top(number: int) -> int:
    return TOP + number * (PANEL + GAP)


def panel(top: int, name: str, most: float, unit: str = "") -> str:
    """Its name, and lines at 0, half and all of `most`. `unit`: "%", where `most` is 1."""
    right = WIDTH - RIGHT
    lines = []
    for share in (0, 0.5, 1):
        y = top + PANEL * (1 - share)
        label = f"{100 * share:.0f} %" if unit == "%" else f"{most * share:g}"
        lines.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    return "".join(lines) + f'<text x="{LEFT}" y="{top - 6}" font-weight="600">{escape(name)}</text>'


def legend(top: int, place: int, label: str, colour: str) -> str:
    y = top + 10 + 18 * place
    return (
        f'<rect x="{WIDTH - RIGHT + 10}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{WIDTH - RIGHT + 25}" y="{y}">{escape(label)}</text>'
    )


def line(x: Floats, y: Floats, colour: str, width: float, dash: str = "") -> str:
    """y: pixels."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{" ".join(_points(x, y))}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'


def area(x: Floats, below: Floats, above: Floats, top: int, most: float, colour: str) -> str:
    """Between two lines, values of a panel that reaches up to `most`."""
    edge = [
        *_points(x, top + PANEL * (1 - above / most)),
        *_points(x, top + PANEL * (1 - below / most))[::-1],
    ]
    return f'<polygon points="{" ".join(edge)}" fill="{colour}"/>'


def mark(x: float, top: int, label: str) -> str:
    """Below the axis of the panel that ends at `top`."""
    return f'<text x="{x:.1f}" y="{top + 18}" text-anchor="middle">{escape(label)}</text>'


def round_up(value: Any) -> float:
    """A round number at or above."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9)))


def _points(x: Floats, y: Floats) -> list[str]:
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]
