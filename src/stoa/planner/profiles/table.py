"""Profiles fitted to tables of times that others have measured.

Three layouts, told apart by their columns and names:
  own        machine, model, kind (prefill | decode), rows, context_tokens, seconds: a timed step a line. `rows`: of
             prompts, or sequences that decode; `context_tokens`: of these sequences together.
  Splitwise  model, hardware, prompt_size, batch_size, token_size, tensor_parallel, prompt_time, token_time (ms):
             a batch of equal requests. A line is two steps: batch x prompt rows in prompt_time; and, in token_time,
             batch sequences with prompt + half of the tokens as context each.
  Helix      ..._prompt_bs2time.csv and ..._decode_bs2time.csv, without a header: tokens of prompts in a batch, or
             sequences that decode in it, and milliseconds of ONE layer. Embeddings, the output head and sampling are
             not in it. The files do not say how long contexts were: their cost is within that of a sequence. The
             line 0,0 is no measurement.

No table says what fits into memory: `Limits`. A step of the profile never has more prompt rows than `max_batch_tokens`,
so larger ones are left out of the fit and of its error, as long as three sizes remain.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from stoa.errors import ConfigError
from stoa.fleet.policies.profile import Profile
from stoa.planner.prices.rows import Row, read_header, read_rows
from stoa.planner.profiles.fitted import Fitted, Limits
from stoa.planner.profiles.steps import Step, errors, fit, typical
from stoa.simulator.scenario import check_profile

OWN = ("machine", "model", "kind", "rows", "context_tokens", "seconds")
SPLITWISE = (
    "model", "hardware", "prompt_size", "batch_size", "token_size", "tensor_parallel", "prompt_time", "token_time",
)  # fmt: skip
_HELIX = re.compile(r"(.*)(prompt|decode)_bs2time\.csv(\.gz)?$")
_TOO_FAST = 1.5  # a step that is so many times faster than one with less in it was not what it says
_MOST_LEFT_OUT = 0.1
_LEAST_SIZES = 3
_WORST_FIT = 0.5
_LONGEST_S = 3600.0

Group = tuple[tuple[str, str], ...]  # what `select` can name, and its value


def read_table(
    path: Path, select: Mapping[str, str | int | float] | None = None, limits: Limits | None = None
) -> Fitted:
    """The profile of one model on one machine. `select` says which, if the table has several: by `machine`, `model`; of
    Splitwise's by `model`, `hardware`, `tensor_parallel`; of Helix's `layers`, how many the model has. ConfigError for
    what cannot be read, is not there or is no such measurement."""
    wanted = {
        name: value if isinstance(value, str) else f"{value:g}" for name, value in (select or {}).items()
    }
    limits = limits or Limits()
    helix = _HELIX.match(path.name)
    if helix:
        return _helix(path, helix, wanted, limits)
    groups = _groups(path)
    name, steps = _chosen(path, groups, wanted)
    return fitted(name, steps, limits, path.name)


def fitted(name: str, steps: Iterable[Step], limits: Limits, source: str) -> Fitted:
    """Least squares over what is credible; ConfigError if the times are no sum of what the steps hold."""
    found = typical(steps)
    credible = _credible(found)
    left_out = len(found) - len(credible)
    if left_out > _MOST_LEFT_OUT * len(found):
        raise ConfigError(
            f"{source}, {name}: {left_out} of {len(found)} steps are faster than others with less in them. Are several "
            "machines mixed, or units?",
            param="throughput",
        )
    within = _within(credible, limits)
    for kind in ("prompt_rows", "decode_rows"):
        sizes = len({getattr(s, kind) for s in within} - {0})
        if sizes < 2:
            raise ConfigError(
                f"{source}, {name}: {sizes} sizes of {kind.replace('_', ' ')}; two or more are needed of each kind",
                param="throughput",
            )
    within, notes = _separable(within)
    profile = Profile(
        name=name, **fit(within), max_num_seqs=limits.max_num_seqs, max_batch_tokens=limits.max_batch_tokens,
        kv_tokens=limits.kv_tokens,
    )  # fmt: skip
    error = float(np.abs(errors(profile, within)).mean())
    if not error <= _WORST_FIT:
        raise ConfigError(
            f"{source}, {name}: times are {error:.0%} off a sum of rows and contexts; accepted: up to {_WORST_FIT:.0%}. Are "
            "several machines mixed, or units?",
            param="throughput",
        )
    if left_out:
        notes.append(f"{left_out} left out, faster than steps with less in them")
    why = "; ".join([f"fitted to {len(within)} measured steps of {source}", *notes])
    return Fitted(check_profile(profile), error, "table", why)


def _credible(steps: list[Step]) -> list[Step]:
    """Without steps much faster than one with no more in it: batches that silently did not fit, mostly."""

    holds = np.array([(s.prompt_rows, s.decode_rows, s.context_tokens) for s in steps]).reshape(-1, 3)
    seconds = np.array([s.seconds for s in steps])
    return [
        step
        for step, inside in zip(steps, holds, strict=True)
        if not np.any(np.all(holds <= inside, axis=1) & (seconds > _TOO_FAST * step.seconds))
    ]


def _within(steps: list[Step], limits: Limits) -> list[Step]:
    rows = sorted({s.prompt_rows for s in steps} - {0})
    most = max([limits.max_batch_tokens, *rows[:_LEAST_SIZES]])
    return [s for s in steps if s.prompt_rows <= most]


def _separable(steps: list[Step]) -> tuple[list[Step], list[str]]:
    """Where all sequences have the same context, its cost cannot be told from a sequence's."""
    each = [s.context_tokens / s.decode_rows for s in steps if s.decode_rows]
    if max(each) - min(each) > 1e-3 * max(each):
        return steps, []
    note = f"contexts of {each[0]:.0f} tokens are within the cost of a sequence" if each[0] else ""
    note = note or "contexts, of unstated length, are within the cost of a sequence"
    return [Step(s.prompt_rows, s.decode_rows, 0.0, s.seconds) for s in steps], [note]


# -- layouts


def _groups(path: Path) -> dict[Group, list[Step]]:
    columns = set(read_header(path))
    groups: dict[Group, list[Step]] = {}
    if set(OWN) <= columns:
        for row in read_rows(path, OWN):
            group: Group = tuple((name, row.text(name)) for name in ("machine", "model"))
            groups.setdefault(group, []).append(_own(row))
    elif set(SPLITWISE) <= columns:
        for row in read_rows(path, SPLITWISE):
            group = tuple((name, row.text(name)) for name in ("model", "hardware", "tensor_parallel"))
            groups.setdefault(group, []).extend(_splitwise(row))
    else:
        raise ConfigError(
            f"{path}, line 1: the columns are those of no table of times; accepted: {', '.join(OWN)}; or "
            f"{', '.join(SPLITWISE)}; or files ..._prompt_bs2time.csv and ..._decode_bs2time.csv",
            param="throughput",
        )
    return groups


def _own(row: Row) -> Step:
    kind, rows = row.text("kind").lower(), _quantity(row, "rows", 1)
    if kind not in ("prefill", "decode"):
        raise row.wrong("kind", "prefill or decode")
    context = 0.0 if not row.text("context_tokens") else _quantity(row, "context_tokens", 0)
    seconds = _seconds(row, "seconds", 1.0)
    if kind == "decode":
        return Step(0, rows, context, seconds)
    if context:
        raise row.wrong(
            "context_tokens", "0 or blank in a line of prefill: only sequences that decode have it"
        )
    return Step(rows, 0, 0.0, seconds)


def _splitwise(row: Row) -> tuple[Step, Step]:
    batch, prompt, tokens = (_quantity(row, name, 1) for name in ("batch_size", "prompt_size", "token_size"))
    return (
        Step(batch * prompt, 0, 0.0, _seconds(row, "prompt_time", 1e-3)),
        Step(0, batch, batch * (prompt + tokens / 2), _seconds(row, "token_time", 1e-3)),
    )


def _quantity(row: Row, column: str, least: float) -> float:
    value = row.number(column)
    if value is None or not least <= value <= 1e9:
        raise row.wrong(column, f"{least:g} or above")
    return value


def _seconds(row: Row, column: str, unit_s: float) -> float:
    value = row.number(column)
    if value is None or not 0 < value * unit_s < _LONGEST_S:
        raise row.wrong(column, f"a time above 0 and below {_LONGEST_S / unit_s:g}")
    return value * unit_s


def _chosen(path: Path, groups: dict[Group, list[Step]], select: Mapping[str, str]) -> tuple[str, list[Step]]:
    names = [name for name, _ in next(iter(groups), ())]
    if not groups:
        raise ConfigError(f"{path} has no line of measurements", param="throughput")
    if unknown := sorted(set(select) - set(names)):
        raise ConfigError(
            f"{path}: select names {', '.join(unknown)}; accepted: {', '.join(names)}", param="select"
        )
    fits = [
        group
        for group in groups
        if all(value.lower() == select.get(name, value).lower() for name, value in group)
    ]
    if len(fits) != 1:
        there = "; ".join(
            ", ".join(f"{name} {value}" for name, value in group) for group in list(groups)[:20]
        )
        found = "nothing" if not fits else f"{len(fits)} machines and models"
        raise ConfigError(f"{path}: select fits {found}; there is {there}", param="select")
    return ", ".join(value for _, value in fits[0]), groups[fits[0]]


def _helix(path: Path, match: re.Match[str], select: Mapping[str, str], limits: Limits) -> Fitted:
    layers = select.get("layers", "")
    if set(select) != {"layers"} or not layers.isdecimal() or not 0 < int(layers) < 10_000:
        raise ConfigError(
            f"{path} has the times of one layer; select = {{layers = ...}} must say how many the model has",
            param="select",
        )
    stem, packed = match[1], match[3] or ""
    steps = []
    for kind in ("prompt", "decode"):
        for size, seconds in _pairs(path.with_name(f"{stem}{kind}_bs2time.csv{packed}"), int(layers)):
            steps.append(Step(size, 0, 0.0, seconds) if kind == "prompt" else Step(0, size, 0.0, seconds))
    name = stem.strip("_").replace("__", " on ") or path.parent.name
    return fitted(name, steps, limits, path.name)


def _pairs(path: Path, layers: int) -> Iterable[tuple[float, float]]:
    """(size, seconds of all layers), without the line 0,0."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", param="throughput") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}", param="throughput") from None
    for number, line in enumerate(lines, 1):
        try:
            size, milliseconds = (float(cell) for cell in line)
        except ValueError:
            size = milliseconds = math.nan
        if size == 0 and milliseconds == 0:
            continue
        if not (0 < size < 1e9 and 0 < milliseconds < 1e6):
            raise ConfigError(
                f"{path}, line {number}: {','.join(line)[:80]!r}; accepted: a size and milliseconds, above 0",
                param="throughput",
            )
        yield size, milliseconds * layers / 1e3
