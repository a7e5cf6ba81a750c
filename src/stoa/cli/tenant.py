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
from stoa.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
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
    from stoa.tenancy.checks import KEEP

    if webhook is not None and alert in (None, "none"):
        raise InvalidRequest("--webhook goes with --alert USD", param="webhook")
    counts: dict[str, Any] = {
        "requests_per_minute": parse_count(rpm, "--rpm"),
        "tokens_per_minute": parse_count(tpm, "--tpm"),
        "concurrent_requests": parse_count(concurrent, "--concurrent"),
    }

    async def work(office: Office) -> dict[str, Any]:
        project = await office.projects.find(_ORGANIZATION, tenant)
        owner = (project.organization_id, project.id)
        if name is not None or weight is not None:
            new_name, new_weight = KEEP if name is None else name, KEEP if weight is None else weight
            project = await office.projects.update(*owner, actor=ACTOR, name=new_name, weight=new_weight)
        if any(value is not KEEP for value in counts.values()):
            await office.limits.update_project(*owner, actor=ACTOR, **counts)
        await _set_budget(office, project, budget, period)
        await _set_alert(office, project, alert, webhook)
        return await _all_facts(office, project)

    show(with_office(home, db, work), as_json)


@app.command("archive")
def archive(tenant: str, home: Home = None, db: Db = None, as_json: AsJson = False) -> None:
    """Archive TENANT for good: its keys stop to work; what it used stays on record."""

    async def work(office: Office) -> dict[str, Any]:
        project = await office.projects.find(_ORGANIZATION, tenant)
        return _facts(await office.projects.archive(project.organization_id, project.id, actor=ACTOR))

    show(with_office(home, db, work), as_json)


async def _set_budget(office: Office, project: Project, budget: str | None, period: str | None) -> None:
    from stoa.economics.money import parse_usd

    if budget is None and period is None:
        return
    owner = (project.organization_id, project.id)
    if budget == "none":
        await office.budgets.remove(*owner, actor=ACTOR)
        return
    try:
        before = await office.budgets.get(*owner)
    except NotFound:
        before = None
    if budget is None and before is None:
        raise InvalidRequest("--period goes with --budget USD", param="period")
    hard_nanos = before.hard_nanos if budget is None and before else parse_usd(budget or "")
    period = period or (before.period if before else "month")
    await office.budgets.set(*owner, actor=ACTOR, hard_nanos=hard_nanos, period=period)


async def _set_alert(office: Office, project: Project, alert: str | None, webhook: str | None) -> None:
    from stoa.economics.money import parse_usd
    from stoa.tenancy.pages import Cut

    owner = (project.organization_id, project.id)
    if alert == "none":
        while found := (await office.budgets.alerts(*owner, Cut(limit=100))).items:
            for one in found:
                await office.budgets.remove_alert(*owner, one.id, actor=ACTOR)
    elif alert is not None:
        threshold = parse_usd(alert)
        await office.budgets.add_alert(*owner, actor=ACTOR, threshold_nanos=threshold, webhook_url=webhook)


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
    from stoa.tenancy.pages import Cut

    owner = (project.organization_id, project.id)
    limits = (await office.limits.of_project(*owner)).limits
    try:
        budget = await office.budgets.get(*owner)
    except NotFound:
        budget = None
    alerts = (await office.budgets.alerts(*owner, Cut(limit=100))).items
    return {
        **_facts(project),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent_requests": limits.concurrent_requests,
        "budget_usd": format_usd(budget.hard_nanos) if budget else None,
        "budget_period": budget.period if budget else None,
        "alerts": [
            {"usd": format_usd(a.threshold_nanos), "webhook": a.webhook_url, "recipients": [*a.recipients]}
            for a in alerts
        ],
    }
