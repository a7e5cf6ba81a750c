"""The parts of an explanation that say how far to trust it: how sure it is, what is scarce, what safety costs, where figures
come from."""

from __future__ import annotations

from collections.abc import Sequence

from stoa.planner.explain import work
from stoa.planner.explain.safety import Bought
from stoa.planner.explain.sections import a_month
from stoa.planner.explain.text import amount, listed, percent, table, usd
from stoa.planner.explain.values import Values
from stoa.planner.losses import Loss, losses
from stoa.planner.plan import Plan
from stoa.planner.problem import Problem, Source

_SOURCES: dict[Source, str] = {
    "measured": "Measured on such a machine",
    "table": "Fitted to times that others measured (off by 2 to 9 %)",
    "roofline": "Reckoned from datasheets (off by some 9 %, on new accelerators by up to 40 %: measure one with "
    "`stoa bench profile` before buying many)",
    "given": "Given as they are",
}
_MOST_WORTHS = 8
_SURE = 0.01


# -- how sure


def bound(plan: Plan, problem: Problem) -> str:
    above = plan.costs.total / plan.bound_usd - 1 if plan.bound_usd > 0 else 0.0
    if above < 0.0005:
        return "It is proved that no plan that keeps all promises is cheaper by more than 0.1 %."
    return (
        "It is proved that no plan that keeps all promises costs less than "
        f"{usd(plan.bound_usd * a_month(problem))} USD per 30 days: this one is at most {percent(above)} above that."
    )


def how_sure(plan: Plan, problem: Problem) -> list[str]:
    lines = [f"- {bound(plan, problem)}"]
    if plan.gap > 0.01:
        lines.append("- A longer search, or one that is asked for a smaller gap, may find a cheaper one.")
    lines += _at_risk(plan, problem)
    margins = problem.rules.margin
    if margins and max(margins) > 1:
        low, high = percent(min(margins) - 1), percent(max(margins) - 1)
        room = high if low == high else f"{low} to {high}"
        lines.append(
            f"- There is room for {room} more than the mean of each period, because requests come unevenly."
        )
    else:
        lines.append(
            "- There is no room beyond the mean of each period: if more comes at times, requests wait."
        )
    if len(problem.scenarios) > 1:
        each = [f"{s.name} ({percent(s.probability)} likely)" for s in problem.scenarios]
        lines.append(f"- The machines are enough for each of: {listed(each)}.")
    for service in problem.services:
        late = [b for b in problem.buckets if b.service == service.name and b.late]
        if late:
            lines.append(
                f"- Some of {service.name} is served late: prompts of about {amount(min(b.prompt_tokens for b in late))} "
                "tokens and more, which nothing answers in time."
            )
    lines.append(
        "- That the promises hold is reckoned, not tried: `stoa plan --verify TRACE` tries it on real requests."
    )
    return ["## How sure this is", "", *lines, ""]


def _at_risk(plan: Plan, problem: Problem) -> list[str]:
    """Spot machines that the plan cannot do without."""
    survived = {loss.name for loss in losses(problem)}
    places = sorted({r.pool.place for r in plan.rented if r.purchase == "spot" and any(r.counts)})
    return [
        f"- If all spot machines at {place} go at once, their requests wait until there are others, for surviving that was "
        "not asked for (`survive_spot`)."
        for place in places
        if not survived & {Loss(place).name, Loss(place, spot=True).name}
    ]


# -- what is scarce, what safety costs


def scarce(known: Values, *, whole: bool) -> list[str]:
    lines = ["## What is scarce", ""]
    worth = [w for w in known.worths if w.saves_usd_per_day > 0][:_MOST_WORTHS]
    if not known.worths:
        return [*lines, "Nothing: no limit makes the plan dearer.", ""]
    if worth:
        cells = [(w.what, usd(w.saves_usd_per_day), usd(30 * w.saves_usd_per_day)) for w in worth]
        lines += [
            "What a little more would save, with all else as it is. The price of its hours is counted; what it costs to "
            f"get it is not. {_roughness(whole)}",
            "",
            *table(("with", "saves, USD per day", "per 30 days"), cells),
            "",
        ]
    idle = [w.what for w in known.worths if w.saves_usd_per_day <= 0]
    if idle:
        lines += [f"Not scarce: {listed(idle)} would save nothing.", ""]
    return lines


def _roughness(whole: bool) -> str:
    if whole:
        return (
            "Each figure compares with another plan that was searched for some seconds: it is right to about 1 % of the "
            "cost, or a range is given."
        )
    return "The figures are estimates, in which a machine may be bought in parts."


def what_safety_costs(plan: Plan, problem: Problem, bought: Sequence[Bought], *, whole: bool) -> list[str]:
    lines = ["## What safety costs", ""]
    promises = [b for b in bought if b.kind == "safety"]
    if promises:
        lines += [*_bought(plan, problem, promises, "for", "costs, USD per 30 days"), ""]
    else:
        lines += ["No margin, no survival of losses and no rule of places was asked for.", ""]
    options = [b for b in bought if b.kind == "option"]
    if options:
        lines += ["What each way of paying saves: without it, the plan would cost so much more.", ""]
        lines += [*_bought(plan, problem, options, "without", "costs more, USD per 30 days"), ""]
    return [
        *lines,
        f"{_roughness(whole)} One thing is taken away at a time: what several save together is more or less than the sum.",
        "",
    ]


def _bought(plan: Plan, problem: Problem, these: Sequence[Bought], first: str, second: str) -> list[str]:
    cells = [
        (b.what, "no plan without", "")
        if b.share is None
        else (b.what, _range(plan, problem, b), percent(b.share))
        for b in these
    ]
    return table((first, second, "share of the cost"), cells)


def _range(plan: Plan, problem: Problem, b: Bought) -> str:
    """One figure where it is known to within a hundredth of the cost."""
    month = a_month(problem)
    if b.usd is None or b.most_usd - b.least_usd <= _SURE * plan.costs.total:
        return usd((b.usd or 0.0) * month)
    return f"{usd(b.least_usd * month)} to {usd(b.most_usd * month)}"


# -- where figures come from


def sources(plan: Plan, problem: Problem) -> list[str]:
    found: dict[Source, list[str]] = {}
    for pool in dict.fromkeys(r.pool for r in plan.rented):
        fit = work.fit_of(problem, pool)
        text = f"{pool.model} on {pool.machine}" + (f" ({fit.why})" if fit.why else "")
        if text not in found.setdefault(fit.source, []):
            found[fit.source].append(text)
    lines = [f"- {_SOURCES[source]}: {', '.join(texts)}." for source, texts in found.items()]
    used = {(r.pool.place, r.pool.machine, r.purchase) for r in plan.rented}
    whys = {o.why for o in problem.offers if o.why and (o.place, o.machine, o.purchase) in used}
    prices = ["What it costs:", "", *(f"- {why}" for why in sorted(whys)), ""] if whys else []
    head = ["## Where the figures come from", "", "How much a machine can do:", ""]
    return [*head, *lines, "", *prices] if lines else []


def notes_on(notes: Sequence[str]) -> list[str]:
    return ["## Notes on the inputs", "", *(f"- {note}" for note in notes), ""] if notes else []
