"""Numbers and tables for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HOURS = re.compile(r"(.*?)(\d\d:\d\d)-(\d\d:\d\d)")  # "weekday 08:00-09:00"


def usd(amount: float) -> str:
    """`12,345`, `12.30`, `0.042`: as many digits as are worth reading."""
    size = abs(amount)
    if size >= 100:
        return f"{amount:,.0f}"
    if size >= 0.0995:
        return f"{amount:.2f}"
    return f"{amount:.2g}" if size >= 5e-5 else "0"


def percent(share: float) -> str:
    if abs(share) < 0.0005:
        return "below 0.1 %" if share else "0 %"
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.1f} %"


def amount(value: float) -> str:
    """With three digits that count, and commas."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def large(value: float) -> str:
    """In millions, billions."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}"
    return amount(value)


def between(least: float, most: float) -> str:
    return amount(least) if least == most else f"{amount(least)} to {amount(most)}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table that is aligned also as plain text: the first `left` columns to the left, others to the
    right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [line(head), f"|{rule}|", *(line(row) for row in rows)]


def spans(names: Sequence[str], chosen: Sequence[int]) -> str:
    """Which periods, in words: runs of them as one, `09:00-14:00`. At most two runs, then how many periods more."""
    if len(chosen) == len(names):
        return "always"
    runs: list[list[int]] = []
    for t in chosen:
        if runs and runs[-1][-1] == t - 1 and _follows(names[t - 1], names[t]):
            runs[-1].append(t)
        else:
            runs.append([t])
    runs.sort(key=lambda run: (-len(run), run))
    told = sorted(runs[:2])
    rest = sum(len(run) for run in runs[2:])
    words = ", ".join(_span(names, run) for run in told)
    return f"{words} and {rest} more" if rest else words


def beginning(name: str) -> str:
    """When a period begins: `weekday 08:00`; its name, if that is none of hours."""
    hours = _HOURS.fullmatch(name)
    return f"{hours[1]}{hours[2]}" if hours else name


def _follows(before: str, name: str) -> bool:
    """Hours of the same days without a gap; other names are taken to follow each other."""
    last, this = _HOURS.fullmatch(before), _HOURS.fullmatch(name)
    return (last[1], last[3]) == (this[1], this[2]) if last and this else last is this


def _span(names: Sequence[str], run: Sequence[int]) -> str:
    first, last = names[run[0]], names[run[-1]]
    if len(run) == 1:
        return first
    end = _HOURS.fullmatch(last)
    return f"{beginning(first)}-{end[3]}" if end else f"{first} to {last}"
