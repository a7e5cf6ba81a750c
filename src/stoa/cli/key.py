"""`stoa key`: API keys of tenants and administrators. A secret is printed once, when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoa.cli.administration import (
    ACTOR,
    AsJson,
    Count,
    Db,
    Home,
    in_future,
    parse_count,
    parse_span,
    show,
    show_all,
    with_office,
)
from stoa.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from stoa.tenancy.keys import ApiKey, NewKey
    from stoa.tenancy.office import Office

app = typer.Typer(
    no_args_is_help=True,
    help="Add, list, rotate and revoke API keys. A running server notices within seconds.",
)
_ORGANIZATION = "default"
Project = Annotated[str | None, typer.Argument(help="tenant, by name or id", show_default=False)]
Admin = Annotated[bool, typer.Option("--admin", help="of administrators, for /v1/organization")]


@app.command("add")
def add(
    project: Project = None,
    admin: Admin = False,
    name: Annotated[str, typer.Option(help="what it is for")] = "key",
    scope: Annotated[list[str] | None, typer.Option(help="what it may do; repeat; default all")] = None,
    expires: Annotated[str | None, typer.Option(metavar="90d", help="for how long it is good")] = None,
    rpm: Count = None,
    tpm: Count = None,
    concurrent: Count = None,
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Make a key of PROJECT, or of the administrators, and print its secret."""
    from stoa.tenancy.checks import KEEP

    _check_owner(project, admin)
    if admin and (scope or rpm or tpm or concurrent):
        raise InvalidRequest("--scope and limits are for keys of projects, not with --admin", param="admin")
    counts: dict[str, Any] = {
        "requests_per_minute": parse_count(rpm, "--rpm"),
        "tokens_per_minute": parse_count(tpm, "--tpm"),
        "concurrent_requests": parse_count(concurrent, "--concurrent"),
    }
    expires_at = in_future(expires, "--expires")

    async def work(office: Office) -> dict[str, Any]:
        project_id = await _project_id(office, project)
        new = await office.keys.create(
            _ORGANIZATION,
            project_id,
            actor=ACTOR,
            name=name,
            scopes=scope or ("all",),
            expires_at=expires_at,
        )
        if project_id is not None and any(value is not KEEP for value in counts.values()):
            await office.limits.update_key(_ORGANIZATION, project_id, new.key.id, actor=ACTOR, **counts)
        return _new_facts(new)

    show(with_office(home, db, work), as_json)


@app.command("list")
def list_(
    project: Project = None, admin: Admin = False, home: Home = None, db: Db = None, as_json: AsJson = False
) -> None:
    """List the keys of PROJECT, or of the administrators."""
    from stoa.tenancy.pages import Cut

    _check_owner(project, admin)

    async def work(office: Office) -> list[dict[str, Any]]:
        project_id = await _project_id(office, project)
        rows: list[dict[str, Any]] = []
        cut = Cut(limit=100)
        while True:
            page = await office.keys.list(_ORGANIZATION, project_id, cut)
            rows.extend(map(_facts, page.items))
            if not page.has_more:
                return rows
            cut = Cut(after=page.items[-1].id, limit=100)

    show_all(with_office(home, db, work), as_json, none="no keys")


@app.command("rotate")
def rotate(
    key_id: str,
    overlap: Annotated[str, typer.Option(metavar="1h", help="how long the old secret stays good")] = "0s",
    home: Home = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Give the key KEY_ID a new secret and print it; limits and usage stay with the key."""
    overlap_s = parse_span(overlap, "--overlap")

    async def work(office: Office) -> dict[str, Any]:
        key = await office.keys.find(_ORGANIZATION, key_id)
        owner = (key.organization_id, key.project_id)
        new = await office.keys.rotate(*owner, key.id, actor=ACTOR, overlap_s=overlap_s)
        until = new.key.previous_until
        return {**_new_facts(new), "old_secret_until": until if until or as_json else "now"}

    _check_id(key_id)
    show(with_office(home, db, work), as_json)


@app.command("revoke")
def revoke(key_id: str, home: Home = None, db: Db = None, as_json: AsJson = False) -> None:
    """Revoke the key KEY_ID for good."""

    async def work(office: Office) -> dict[str, Any]:
        key = await office.keys.find(_ORGANIZATION, key_id)
        await office.keys.revoke(key.organization_id, key.project_id, key.id, actor=ACTOR)
        return {"id": key.id, "revoked": True}

    _check_id(key_id)
    show(with_office(home, db, work), as_json)


def _check_owner(project: str | None, admin: bool) -> None:
    if admin and project is not None:
        raise InvalidRequest("say a PROJECT or --admin, not both", param="project")
    if not admin and project is None:
        raise InvalidRequest("say a PROJECT, or --admin", param="project")


def _check_id(key_id: str) -> None:
    """That it can be one. A secret, given by mistake, is not repeated."""
    accepted = "give the key's id, key_…; stoa key list PROJECT shows it"
    if key_id.strip().startswith("sk-"):
        raise InvalidRequest(f"that looks like a secret; {accepted}", param="key_id")
    if not key_id.startswith("key_"):
        raise NotFound(f"no key {key_id!r}; {accepted}", param="key_id")


async def _project_id(office: Office, project: str | None) -> str | None:
    return None if project is None else (await office.projects.find(_ORGANIZATION, project)).id


def _facts(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "project_id": key.project_id,
        "name": key.name,
        "key": key.redacted,
        "scopes": [*key.scopes],
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
    }


def _new_facts(new: NewKey) -> dict[str, Any]:
    facts = {**_facts(new.key), "secret": new.secret}
    return {name: value for name, value in facts.items() if name not in ("key", "last_used_at")}
