"""`stoa tenant`: the projects, each a tenant with adapters, keys, limits and a budget of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.cli.administration import (
    ACTOR,
    AsJson,
    Count,
    Db,
    Home,
    parse_count,
    show,
    show_all,
    with_office,
)
from stoa.errors import Conflict, InvalidRequest, NotFound

if TYPE_CHECKING:
    from stoa.tenancy.budgets import SpendAlert, SpendLimit
    from stoa.tenancy.checks import Keep
    from stoa.tenancy.office import Office
    from stoa.tenancy.projects import Project

app = typer.Typer(
    no_args_is_help=True,
    help="Add, list, change and archive tenants (projects). A running server notices within seconds.",
)
_ORGANIZATION = "default"


@app.command("add")
def add(
    name: str,
    weight: Annotated[float, typer.Option(help="its share under load, beside the others' 1.0")] = 1.0,
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Make a tenant named NAME."""

    async def work(office: Office) -> dict[str, Any]:
        await _check_free(office, name)
        return _facts(await office.projects.create(_ORGANIZATION, name, actor=ACTOR, weight=weight))

    show(with_office(home, db, work), as_json)


@app.command("list")
def list_(
    archived: Annotated[bool, typer.Option("--archived", help="the archived ones too")] = False,
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """List tenants, oldest first."""
    from stoa.tenancy.pages import Cut

    async def work(office: Office) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        cut = Cut(limit=100)
        while True:
            page = await office.projects.list(_ORGANIZATION, cut, include_archived=archived)
            rows.extend(map(_facts, page.items))
            if not page.has_more:
                return rows
            cut = Cut(after=page.items[-1].id, limit=100)

    show_all(with_office(home, db, work), as_json, none="no tenants")


@app.command("show")
def show_(tenant: str, home: Home = None, db: Db = None, as_json: AsJson = False) -> None:
    """Show TENANT (a name or an id) with its limits, budget and alerts."""

    async def work(office: Office) -> dict[str, Any]:
        return await _all_facts(office, await office.projects.find(_ORGANIZATION, tenant))

    show(with_office(home, db, work), as_json)


@app.command("set")
def set_(
    tenant: str,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    weight: Annotated[float | None, typer.Option(help="its share under load")] = None,
    rpm: Count = None,
    tpm: Count = None,
    concurrent: Count = None,
    budget: Annotated[str | None, typer.Option(metavar="USD|none", help="hard limit of spending")] = None,
    period: Annotated[str | None, typer.Option(help="of the budget: month (default) or total")] = None,
    alert: Annotated[
        str | None, typer.Option(metavar="USD|none", help="one more alert; none: no more")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="whom the alert calls")] = None,
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Change TENANT: requests and tokens a minute, requests at a time, budget, alerts. What is not named stays."""
    from stoa.tenancy.budgets import check_webhook
    from stoa.tenancy.checks import KEEP, check_choice, check_name, check_weight

    if webhook is not None and alert in (None, "none"):
        raise InvalidRequest("--webhook goes with --alert USD", param="webhook")
    new_name = KEEP if name is None else check_name(name, "--name")
    new_weight = KEEP if weight is None else check_weight(weight)
    counts: dict[str, Any] = {
        "requests_per_minute": parse_count(rpm, "--rpm"),
        "tokens_per_minute": parse_count(tpm, "--tpm"),
        "concurrent_requests": parse_count(concurrent, "--concurrent"),
    }
    hard_nanos, threshold_nanos = _parse_money(budget, "--budget"), _parse_money(alert, "--alert")
    if period is not None:
        check_choice(period, ("month", "total"), "--period")
    check_webhook(webhook, "--webhook")

    async def work(office: Office) -> dict[str, Any]:
        project = await office.projects.find(_ORGANIZATION, tenant)
        owner = (project.organization_id, project.id)
        if project.is_archived:
            raise Conflict(f"tenant {tenant!r} is archived")
        if name is not None:
            await _check_free(office, name, project.id)
        if hard_nanos is KEEP and period is not None and await _budget(office, project) is None:
            raise InvalidRequest("--period goes with --budget USD", param="period")
        # All that was said is good: from here on it is written.
        if name is not None or weight is not None:
            project = await office.projects.update(*owner, actor=ACTOR, name=new_name, weight=new_weight)
        if any(value is not KEEP for value in counts.values()):
            await office.limits.update_project(*owner, actor=ACTOR, **counts)
        await _set_budget(office, project, hard_nanos, period)
        await _set_alert(office, project, threshold_nanos, webhook)
        return await _all_facts(office, project)

    show(with_office(home, db, work), as_json)


@app.command("archive")
def archive(tenant: str, home: Home = None, db: Db = None, as_json: AsJson = False) -> None:
    """Archive TENANT for good: its keys stop to work; what it used stays on record."""

    async def work(office: Office) -> dict[str, Any]:
        project = await office.projects.find(_ORGANIZATION, tenant)
        return _facts(await office.projects.archive(project.organization_id, project.id, actor=ACTOR))

    show(with_office(home, db, work), as_json)


async def _check_free(office: Office, name: str, but: str | None = None) -> None:
    """That no other active tenant has the name. Raises Conflict."""
    others = [p.id for p in await office.projects.named(_ORGANIZATION, name.strip()) if p.id != but]
    if others:
        raise Conflict(f"a tenant is named {name.strip()!r} already: {others[0]}", param="name")


def _parse_money(text: str | None, flag: str) -> int | Keep | None:
    """Nano-dollars. Not given: KEEP. "none": None. Raises InvalidRequest."""
    from stoa.economics.money import parse_usd
    from stoa.tenancy.checks import KEEP, check_nanos

    if text is None or text == "none":
        return KEEP if text is None else None
    return check_nanos(parse_usd(text), flag)


async def _set_budget(
    office: Office, project: Project, hard_nanos: int | Keep | None, period: str | None
) -> None:
    from stoa.tenancy.checks import KEEP

    if hard_nanos is KEEP and period is None:
        return
    owner = (project.organization_id, project.id)
    before = await _budget(office, project)
    if hard_nanos is KEEP:
        hard_nanos = before.hard_nanos if before else None
    period = period or (before.period if before else "month")
    if hard_nanos is not None:
        await office.budgets.set(*owner, actor=ACTOR, hard_nanos=hard_nanos, period=period)
    elif before is not None:
        await office.budgets.remove(*owner, actor=ACTOR)


async def _set_alert(
    office: Office, project: Project, threshold_nanos: int | Keep | None, webhook: str | None
) -> None:
    """An alert at the same amount is changed. None: there are none any more."""
    from stoa.tenancy.checks import KEEP

    if threshold_nanos is KEEP:
        return
    owner, budgets = (project.organization_id, project.id), office.budgets
    alerts = await _alerts(office, project)
    same = [alert.id for alert in alerts if alert.threshold_nanos == threshold_nanos]
    if threshold_nanos is None:
        for alert in alerts:
            await budgets.remove_alert(*owner, alert.id, actor=ACTOR)
    elif not same:
        await budgets.add_alert(*owner, actor=ACTOR, threshold_nanos=threshold_nanos, webhook_url=webhook)
    elif webhook is not None:
        await budgets.update_alert(*owner, same[0], actor=ACTOR, webhook_url=webhook)


async def _budget(office: Office, project: Project) -> SpendLimit | None:
    try:
        return await office.budgets.get(project.organization_id, project.id)
    except NotFound:
        return None


async def _alerts(office: Office, project: Project) -> list[SpendAlert]:
    from stoa.tenancy.pages import Cut

    found: list[SpendAlert] = []
    cut = Cut(limit=100)
    while True:
        page = await office.budgets.alerts(project.organization_id, project.id, cut)
        found.extend(page.items)
        if not page.has_more:
            return found
        cut = Cut(after=page.items[-1].id, limit=100)


def _facts(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "weight": project.weight,
        "status": "archived" if project.is_archived else "active",
        "created_at": project.created_at,
    }


async def _all_facts(office: Office, project: Project) -> dict[str, Any]:
    from stoa.economics.money import format_usd

    owner = (project.organization_id, project.id)
    limits = (await office.limits.of_project(*owner)).limits
    budget = await _budget(office, project)
    return {
        **_facts(project),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent_requests": limits.concurrent_requests,
        "budget_usd": format_usd(budget.hard_nanos) if budget else None,
        "budget_period": budget.period if budget else None,
        "alerts": [
            {"usd": format_usd(a.threshold_nanos), "webhook": a.webhook_url, "recipients": [*a.recipients]}
            for a in sorted(await _alerts(office, project), key=lambda a: a.threshold_nanos)
        ],
    }
