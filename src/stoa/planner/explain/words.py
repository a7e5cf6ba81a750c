"""A plan in words, for people who know neither solvers nor accelerators; and the same facts as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stoa.planner.explain import facts, work
from stoa.planner.explain.certainty import bound, how_sure, notes_on, scarce, sources, what_safety_costs
from stoa.planner.explain.relaxation import is_rough
from stoa.planner.explain.safety import Bought, safety
from stoa.planner.explain.sections import (
    a_day,
    a_month,
    what_is_reserved,
    what_it_costs,
    what_runs,
    where_requests_go,
)
from stoa.planner.explain.text import amount, large, listed, usd
from stoa.planner.explain.values import Values, values
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem

_WIDTH = 120
_GLOSSARY = (
    ("token", "a piece of a word; what models read and write, and what is counted"),
    ("machine", "a computer with accelerators (GPUs); here each runs one copy of one model"),
    ("by the hour", "rented on demand, given back whenever it is not needed"),
    ("spot", "rented from what a provider has left over: cheap, and taken back at short notice"),
    ("reserved", "rented for the whole time in advance, cheaper an hour, paid whether it runs or not"),
    ("API", "somebody else's service, paid by the token"),
    ("pace", "which service's promised speed the machines of a model are kept at"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reckoned:
    """What takes some programs to find out. `whole`: with whole machines, else with parts of them."""

    values: Values
    safety: tuple[Bought, ...]
    whole: bool = False


def reckon(plan: Plan, problem: Problem) -> Reckoned:
    """With whole machines where parts of them would say too little: some seconds then."""
    whole = plan if is_rough(problem, plan) else None
    return Reckoned(values(problem, whole=whole), safety(problem, whole=whole), whole is not None)


def explain(
    plan: Plan,
    problem: Problem,
    notes: Sequence[str] = (),
    *,
    warnings: Sequence[str] = (),
    reckoned: Reckoned | None = None,
) -> str:
    """Markdown that is readable as it stands. `notes`: what is to be said of the inputs; `warnings`: before all else."""
    known = reckoned or reckon(plan, problem)
    parts = [
        _summary(plan, problem),
        _first(warnings),
        what_runs(plan, problem),
        what_is_reserved(plan, problem),
        where_requests_go(plan, problem),
        what_it_costs(plan, problem, known.values.served),
        how_sure(plan, problem),
        scarce(known.values, whole=known.whole),
        what_safety_costs(plan, problem, known.safety, whole=known.whole),
        sources(plan, problem),
        notes_on(notes),
        _words(plan),
    ]
    return "\n".join(_wrapped(line) for part in parts for line in part).rstrip() + "\n"


def _wrapped(line: str) -> str:
    """Tables and headings as they are."""
    if line.startswith(("|", "#")):
        return line
    indent = " " * (len(line) - len(line.lstrip(" -")))
    return textwrap.fill(
        line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _words(plan: Plan) -> list[str]:
    paced = any(r.pool.pace for r in plan.rented)
    words = [f"- {word}: {meaning}" for word, meaning in _GLOSSARY if word != "pace" or paced]
    return ["## Words", "", *words]


def _tokens(plan: Plan, problem: Problem) -> float:
    return sum(facts.tokens_by_target(plan, problem).values())


def _summary(plan: Plan, problem: Problem) -> list[str]:
    flows = facts.flows(plan, problem)
    tokens, total = _tokens(plan, problem), plan.costs.total
    rate = sum(f.requests for f in flows) / (problem.horizon_h * 3600)
    counts = [sum(n for _, _, n in plan.machines(t)) for t in range(len(problem.periods))]
    places = listed(sorted({r.pool.place for r in plan.rented}))
    each = f", {usd(1e6 * total / tokens)} USD per 1M tokens" if tokens else ""
    hosted = [c.api.name for c in facts.called(plan, problem)]
    helps = f"; what is left goes to the hosted model {listed(hosted)}" if hosted else ""
    return [
        "# The plan",
        "",
        f"{usd(total * a_month(problem))} USD per 30 days ({usd(total * a_day(problem))} per day{each}) serve all that is "
        f"asked: {amount(rate)} requests a second on average, {large(tokens * a_month(problem))} tokens in 30 days. For "
        f"that, {_machines_run(counts)}{f' at {places}' if places else ''}{helps}. {bound(plan, problem)}",
        "",
        f"Amounts are in US dollars, and averages over the {amount(problem.horizon_h / 24)} days that were planned.",
        "",
    ]


def _machines_run(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    if least != most:
        return f"{least} to {most} machines run at a time,"
    return "1 machine runs" if most == 1 else f"{most} machines run at a time,"


def _first(warnings: Sequence[str]) -> list[str]:
    return ["Before you trust it:", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []


# -- as JSON


def as_json(plan: Plan, problem: Problem, *, reckoned: Reckoned | None = None) -> dict[str, Any]:
    """What `explain` says, as plain values. Amounts without another unit are over the horizon."""
    known = reckoned or reckon(plan, problem)
    tokens = _tokens(plan, problem)
    return {
        "horizon_h": problem.horizon_h,
        "periods": [{"name": p.name, "hours": p.hours, "times": p.times} for p in problem.periods],
        "usd": plan.costs.total,
        "usd_per_day": plan.costs.total * a_day(problem),
        "usd_per_30_days": plan.costs.total * a_month(problem),
        "usd_per_mtok": 1e6 * plan.costs.total / tokens if tokens else None,
        "tokens": tokens,
        "costs": {**plan.costs.machines, "api": plan.costs.api, "network": plan.costs.network},
        "bound_usd": plan.bound_usd,
        "gap": plan.gap,
        "method": plan.method,
        "solve_s": plan.solve_s,
        "machines": _machines(plan, problem),
        "reserved": [
            {"place": r.place, "machine": r.machine, "machines": r.count, "used": r.used, "usd": r.usd}
            for r in facts.reserved(plan, problem)
        ],
        "apis": [
            {
                "api": c.api.name,
                "place": c.api.place,
                "requests": c.requests,
                "tokens": c.tokens,
                "usd": c.usd,
            }
            for c in facts.called(plan, problem)
        ],
        "requests": _requests(plan, problem, known.values),
        "survives": facts.survived(plan, problem),
        "whole_machines": known.whole,
        "scarce": [
            {"what": w.what, "saves_usd_per_day": w.saves_usd_per_day, "dual_usd_per_day": w.dual_usd_per_day}
            for w in known.values.worths
        ],
        "safety": [
            {
                "kind": b.kind,
                "what": b.what,
                "usd": b.usd,
                "share": b.share,
                "least_usd": b.least_usd,
                "most_usd": b.most_usd,
            }
            for b in known.safety
        ],
    }


def _machines(plan: Plan, problem: Problem) -> list[dict[str, Any]]:
    return [
        {
            "place": row.place, "machine": row.machine, "model": row.model, "pace": row.pace,
            "purchase": row.offer.purchase, "counts": list(row.counts), "usd": row.usd,
            "source": work.fit_of(problem, row.pool).source if row.model else None,
        }
        for row in facts.rows(plan, problem)
    ]  # fmt: skip


def _requests(plan: Plan, problem: Problem, known: Values) -> list[dict[str, Any]]:
    whole = sum(s.usd for s in known.served)
    scale = plan.costs.total / whole if whole else 0.0
    paid = {(s.service, s.group): scale * s.usd for s in known.served}
    return [
        {
            "service": f.service, "group": f.group, "requests": f.requests, "tokens": f.tokens,
            "usd": paid.get((f.service, f.group), 0.0),
            "shares": {facts.name_of(problem, target): share for target, share in f.shares},
        }
        for f in facts.flows(plan, problem)
    ]  # fmt: skip
