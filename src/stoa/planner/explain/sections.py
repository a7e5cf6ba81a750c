"""The parts of an explanation that the plan itself tells: what runs, what is reserved, where requests go, what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten

from stoa.planner.explain import facts
from stoa.planner.explain.facts import Called, Row
from stoa.planner.explain.text import amount, between, large, listed, percent, spans, table, usd
from stoa.planner.explain.values import Served
from stoa.planner.plan import Plan
from stoa.planner.problem import PURCHASES, Offer, Problem, Purchase

PAID: dict[Purchase, str] = {
    "owned": "owned", "reserved": "reserved", "on_demand": "by the hour", "spot": "spot",
}  # fmt: skip
_MOST_TARGETS = 4
_RULE = 200  # letters of a rule that are shown


def a_day(problem: Problem) -> float:
    """What sums over the horizon are times this, for a day."""
    return 24 / problem.horizon_h


def a_month(problem: Problem) -> float:
    """... for 30 days."""
    return 30 * a_day(problem)


# -- what runs


def what_runs(plan: Plan, problem: Problem) -> list[str]:
    rows, apis = facts.rows(plan, problem), facts.called(plan, problem)
    lines = [
        "## What runs where, and why",
        "",
        "What is cheapest for each token is used first, as much of it as there is; dearer machines run where promises of "
        "speed, rules or the busiest hours need them.",
        "",
    ]
    for place in problem.places:
        mine = [row for row in rows if row.place == place.name]
        hosted = [c for c in apis if c.api.place == place.name]
        if mine or hosted:
            lines += _at_place(problem, place.name, mine, hosted)
    return lines


def _at_place(problem: Problem, place: str, rows: Sequence[Row], apis: Sequence[Called]) -> list[str]:
    month = a_month(problem)
    names = [p.name for p in problem.periods]
    cells = []
    for row in rows:
        most = max(row.counts)
        cells.append(
            (
                row.machine, _model(row.model, row.pace) or "not used", PAID[row.offer.purchase],
                spans(names, _peak(row.counts)) if most else "never", between(min(row.counts), most),
                usd(row.usd * month), usd(1e6 * row.usd / row.tokens) if row.tokens else "",
            )
        )  # fmt: skip
    cells += [
        (
            f"{c.api.name} (API)", c.api.model, "by the token", spans(names, _peak(c.rates)), "", usd(c.usd * month),
            usd(1e6 * c.usd / c.tokens) if c.tokens else "",
        )
        for c in apis
    ]  # fmt: skip
    head = ("machine", "model", "paid", "busiest", "machines", "USD per 30 days", "USD per 1M tokens")
    total = sum(row.usd for row in rows) + sum(c.usd for c in apis)
    return [
        f"### {place}: {usd(total * month)} USD per 30 days",
        "",
        *table(head, cells, left=4),
        "",
        *(f"- {line}" for line in _reasons(problem, rows, apis)),
        "",
    ]


def _model(model: str, pace: str) -> str:
    return f"{model} (pace of {pace})" if pace else model


def _peak(counts: Sequence[float]) -> list[int]:
    most = max(counts)
    return [t for t, n in enumerate(counts) if n >= most - 1e-3 * abs(most)]


def _reasons(problem: Problem, rows: Sequence[Row], apis: Sequence[Called]) -> Iterable[str]:
    """Why machines are paid for as they are, a line for each way of paying."""
    alike: dict[Offer, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.offer, []).append(row)
    for purchase in PURCHASES:
        mine = {offer: each for offer, each in alike.items() if offer.purchase == purchase}
        if mine:
            yield _reason(problem, purchase, mine)
    for c in apis:
        mean = amount(c.requests / (problem.horizon_h * 3600))
        yield (
            f"{c.api.name} takes {mean} requests a second on average and {amount(max(c.rates))} at most, for which machines "
            "would be dearer or are not to be had."
        )


def _reason(problem: Problem, purchase: Purchase, mine: Mapping[Offer, Sequence[Row]]) -> str:
    each = listed([f"{o.machine} {usd(o.hourly_usd)} USD an hour{_instead(problem, o)}" for o in mine])
    match purchase:
        case "owned":
            full = [o.machine for o, rows in mine.items() if _most(rows) == o.limit]
            use = f" At the busiest time none is left of {listed(full)}." if full else ""
            return f"Owned machines are there already and cost only what running them does: {each}.{use}"
        case "reserved":
            return f"Reserved machines cost less an hour, but day and night: {each}."
        case "on_demand":
            run_h = sum(_run_h(problem, rows) for rows in mine.values()) * a_day(problem)
            what = "for what nothing cheaper is there for"
            return f"By the hour only while they run ({amount(run_h)} machine-hours a day), {what}: {each}."
        case "spot":
            there = listed(sorted({percent(o.availability) for o in mine}))
            back = f"The provider may take them back; they are reckoned to be there {there} of the time."
            return f"Spot machines are what the provider has left over: {each}. {back}"


def _instead(problem: Problem, offer: Offer) -> str:
    """Compared with the same machine by the hour."""
    key = (offer.place, offer.machine, "on_demand")
    other = next((o for o in problem.offers if (o.place, o.machine, o.purchase) == key), None)
    if other is None or other.limit == 0 or offer.purchase not in ("reserved", "spot"):
        return ""
    share = offer.hourly_usd / other.hourly_usd
    if offer.purchase == "spot":
        return f" ({percent(1 - share)} less than by the hour)"
    return f" (instead of {usd(other.hourly_usd)}: cheaper if it runs more than {percent(share)} of the time)"


def _most(rows: Sequence[Row]) -> int:
    counts: list[int] = [sum(each) for each in zip(*(row.counts for row in rows), strict=True)]
    return max(counts)


def _run_h(problem: Problem, rows: Sequence[Row]) -> float:
    hours = problem.hours
    return sum(n * h for row in rows for n, h in zip(row.counts, hours, strict=True))


# -- what is reserved


def what_is_reserved(plan: Plan, problem: Problem) -> list[str]:
    found = facts.reserved(plan, problem)
    lines = ["## What to reserve", ""]
    if not found:
        offered = any(o.purchase == "reserved" and o.limit != 0 for o in problem.offers)
        return [
            *lines,
            "Nothing: no machine would run enough hours to be cheaper that way."
            if offered
            else "Nobody offers machines that way.",
            "",
        ]
    month = a_month(problem)
    cells = [
        (r.place, r.machine, str(r.count), percent(r.used), usd(r.hourly_usd), usd(r.usd * month))
        for r in found
    ]
    head = ("place", "machine", "machines", "in use", "USD an hour each", "USD per 30 days")
    return [*lines, *table(head, cells, left=2), ""]


# -- where requests go


def where_requests_go(plan: Plan, problem: Problem) -> list[str]:
    flows = facts.flows(plan, problem)
    several = len({f.group for f in flows}) > 1
    lines = ["## Where requests go", ""]
    for flow in flows:
        rate = amount(flow.requests / (problem.horizon_h * 3600))
        group = f", {flow.group}" if several else ""
        lines.append(f"- {flow.service}{group}: {rate} requests a second on average")
        for target, share in flow.shares[:_MOST_TARGETS]:
            lines.append(f"  - {percent(share)} to {facts.name_of(problem, target)}")
        rest = sum(share for _, share in flow.shares[_MOST_TARGETS:])
        if rest > 0.0005:
            count = len(flow.shares) - _MOST_TARGETS
            other = f"{count} others" if count > 1 else facts.name_of(problem, flow.shares[-1][0])
            lines.append(f"  - {percent(rest)} to {other}")
    return [*lines, "", *_restricted(problem), *_after_losses(plan, problem)]


def _restricted(problem: Problem) -> list[str]:
    everywhere = {p.name for p in problem.places}
    lines = []
    for group in problem.groups:
        if group.places < everywhere:
            rules = f" (rule: {shorten('; '.join(group.rules), _RULE)})" if group.rules else ""
            asks = any(b.group == group.name and any(b.rates) for b in problem.buckets)
            kept = (
                "No request of it goes elsewhere" if asks else "Nobody of it asks for anything in this demand"
            )
            lines.append(f"- only at {listed(sorted(group.places))}: {group.name}{rules}. {kept}.")
    return ["Rules about where requests may be computed:", "", *lines, ""] if lines else []


def _after_losses(plan: Plan, problem: Problem) -> list[str]:
    found = facts.survived(plan, problem)
    if not found:
        return []
    left_out = [s.name for s in problem.services if not s.survives]
    but = f", except {listed(left_out)}, for which that was not promised" if left_out else ""
    strain = problem.rules.strain
    fuller = f", with machines up to {amount(strain)} times as full as usual" if strain > 1 else ""
    head = f"What is left can serve all requests{but}, in each of these cases{fuller}:"
    return [head, "", *(f"- {world}" for world in found), ""]


# -- what it costs


def what_it_costs(plan: Plan, problem: Problem, served: Sequence[Served]) -> list[str]:
    day, month, total = a_day(problem), a_month(problem), plan.costs.total
    parts = [
        ("owned machines (what running them costs)", plan.costs.machines.get("owned", 0.0)),
        ("reserved machines", plan.costs.machines.get("reserved", 0.0)),
        ("machines by the hour", plan.costs.machines.get("on_demand", 0.0)),
        ("spot machines", plan.costs.machines.get("spot", 0.0)),
        ("hosted models, by the token", plan.costs.api),
        ("network traffic", plan.costs.network),
    ]
    cells = [(name, usd(x * day), usd(x * month), percent(x / total)) for name, x in parts if x > 0]
    cells.append(("in all", usd(total * day), usd(total * month), "100 %"))
    head = ("for", "USD per day", "USD per 30 days", "share")
    budget_usd = problem.rules.budget_usd
    lines = ["## What it costs", "", *table(head, cells), ""]
    if budget_usd is not None:
        left = (budget_usd - total) * month
        lines += [f"The budget is {usd(budget_usd * month)} USD per 30 days; {usd(left)} are left of it.", ""]
    return [
        *lines,
        "Shared among those who are served, in proportion to what one more request of each would add to the cost:",
        "",
        *_shares(plan, problem, served),
    ]


def _shares(plan: Plan, problem: Problem, served: Sequence[Served]) -> list[str]:
    month = a_month(problem)
    whole = sum(s.usd for s in served)
    scale = plan.costs.total / whole if whole > 0 else 0.0
    cells = [
        (
            s.service, s.group, large(s.tokens * month), usd(scale * s.usd_per_mtok), usd(scale * s.usd * month),
            percent(s.usd / whole) if whole else "",
        )
        for s in served
    ]  # fmt: skip
    head = ("requests", "group", "tokens per 30 days", "USD per 1M tokens", "USD per 30 days", "share")
    return [*table(head, cells, left=2), ""]
