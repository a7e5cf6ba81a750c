"""What holds for all that administrators do: audit, versions, foreign things, pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from stoa.errors import Conflict, InvalidRequest, NotFound
from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy import tables
from stoa.tenancy.audit import AuditFilter
from stoa.tenancy.checks import check_count, check_name, check_url, check_weight
from stoa.tenancy.office import Office, open_office
from stoa.tenancy.pages import Cut
from tests.tenancy.offices import ORG, START, ManualClock, ticking_office


@pytest.fixture
def office(database: Database) -> Office:
    return ticking_office(database)


async def all_acts(office: Office) -> list[tuple[str, str]]:
    """Every act once: the type of its entry, and what it was done to."""
    done: list[tuple[str, str]] = []
    who = {"actor": "key_1"}
    organization = await office.organizations.create("Other", **who)
    done.append(("organization.created", organization.id))
    await office.organizations.rename(organization.id, "Another", **who)
    done.append(("organization.updated", organization.id))
    project = await office.projects.create(ORG, "P", **who)
    owner = (ORG, project.id)
    done.append(("project.created", project.id))
    await office.projects.update(*owner, name="Q", **who)
    done.append(("project.updated", project.id))
    new = await office.keys.create(*owner, name="k", **who)
    done.append(("api_key.created", new.key.id))
    await office.keys.update(*owner, new.key.id, name="l", **who)
    done.append(("api_key.updated", new.key.id))
    await office.keys.rotate(*owner, new.key.id, **who)
    done.append(("api_key.rotated", new.key.id))
    await office.limits.update_key(*owner, new.key.id, requests_per_minute=1, **who)
    done.append(("rate_limit.updated", new.key.id))
    await office.keys.revoke(*owner, new.key.id, **who)
    done.append(("api_key.deleted", new.key.id))
    await office.limits.update_project(*owner, tokens_per_minute=5, **who)
    done.append(("rate_limit.updated", project.id))
    account = (await office.service_accounts.create(*owner, "s", with_key=False, **who)).account
    done.append(("service_account.created", account.id))
    await office.service_accounts.update(*owner, account.id, name="t", **who)
    done.append(("service_account.updated", account.id))
    await office.service_accounts.delete(*owner, account.id, **who)
    done.append(("service_account.deleted", account.id))
    await office.budgets.set(*owner, hard_nanos=1, **who)
    done.append(("spend_limit.updated", f"project/{project.id}"))
    await office.budgets.remove(*owner, **who)
    done.append(("spend_limit.deleted", f"project/{project.id}"))
    alert = await office.budgets.add_alert(*owner, threshold_nanos=1, **who)
    done.append(("spend_alert.created", alert.id))
    await office.budgets.update_alert(*owner, alert.id, threshold_nanos=2, **who)
    done.append(("spend_alert.updated", alert.id))
    await office.budgets.remove_alert(*owner, alert.id, **who)
    done.append(("spend_alert.deleted", alert.id))
    await office.projects.archive(*owner, **who)
    done.append(("project.archived", project.id))
    return done


async def test_every_act_is_in_the_audit_log(office: Office) -> None:
    """In order, with who did it, when, and to what; no secret is in it."""
    done = await all_acts(office)
    first = (await office.audit.list(ORG, cut=Cut(limit=100))).items
    here = [(e.type, e.resource_id) for e in first]
    assert here == [d for d in done if not d[0].startswith("organization.")]
    (other,) = {d[1] for d in done if d[0] == "organization.created"}
    there = (await office.audit.list(other)).items
    assert [e.type for e in there] == ["organization.updated", "organization.created"]
    assert all(e.actor == "key_1" and e.effective_at > START for e in first)
    assert not any("sk-stoa" in str(e.details) for e in first)


async def test_a_refused_act_leaves_no_trace(office: Office) -> None:
    """Neither a row nor an entry."""
    with pytest.raises(NotFound):
        await office.keys.create(ORG, "nowhere", name="k", actor="a")
    with pytest.raises(InvalidRequest):
        await office.projects.create(ORG, "", actor="a")
    assert (await office.audit.list(ORG)).items == ()


async def test_the_audit_log_is_filtered(office: Office) -> None:
    """By time, project, type, actor and thing."""
    done = await all_acts(office)
    (project,) = {d[1] for d in done if d[0] == "project.created"}
    await office.projects.create(ORG, "Z", actor="cli")
    entries = (await office.audit.list(ORG, cut=Cut(limit=100))).items
    middle = entries[7].effective_at

    async def count(**wanted: Any) -> int:
        return len((await office.audit.list(ORG, AuditFilter(**wanted), Cut(limit=100))).items)

    assert await count(project_ids=[project]) == len(entries) - 1
    assert await count(event_types=["project.created"]) == 2
    assert await count(event_types=["project.created", "project.archived"]) == 3
    assert await count(actor_ids=["cli"]) == await count(actor_ids=["cli", "nobody"]) == 1
    assert await count(resource_ids=[project]) == 4
    assert await count(lt=middle) == 7
    assert await count(lte=middle) == 8
    assert await count(gt=middle) == len(entries) - 8
    assert await count(gte=middle, lt=middle + 1) == 1


async def test_the_audit_log_is_only_added_to(office: Office, database: Database) -> None:
    """The code has no way to change or remove an entry."""
    await office.projects.create(ORG, "P", actor="cli")
    row = tables.AuditEntry

    async def change() -> None:
        async with database.begin(EVERY_PROJECT) as session:
            found = (await session.scalars(select(row))).one()
            found.actor = "me"

    async def remove() -> None:
        async with database.begin(EVERY_PROJECT) as session:
            await session.delete((await session.scalars(select(row))).one())

    for attempt in (change, remove):
        with pytest.raises(AssertionError):
            await attempt()
    assert (await office.audit.list(ORG)).items[0].actor == "cli"


Edit = Callable[[Office, str, str, int | None], Awaitable[Any]]
EDITS: dict[str, Edit] = {
    "project": lambda o, p, x, v: o.projects.update(ORG, p, name=x, actor="a", version=v),
    "key": lambda o, p, x, v: _with(o.keys.list(ORG, p), lambda k: o.keys.update(ORG, p, k, name=x, actor="a", version=v)),
    "limits": lambda o, p, x, v: o.limits.update_project(ORG, p, tokens_per_minute=len(x), actor="a", version=v),
    "budget": lambda o, p, x, v: o.budgets.set(ORG, p, hard_nanos=len(x), actor="a", version=v),
    "organization": lambda o, p, x, v: o.organizations.rename(ORG, x, actor="a", version=v),
    "account": lambda o, p, x, v: _with(
        o.service_accounts.list(ORG, p), lambda k: o.service_accounts.update(ORG, p, k, name=x, actor="a", version=v)
    ),
    "alert": lambda o, p, x, v: _with(
        o.budgets.alerts(ORG, p), lambda k: o.budgets.update_alert(ORG, p, k, threshold_nanos=len(x), actor="a", version=v)
    ),
}  # fmt: skip


async def _with(page: Awaitable[Any], edit: Callable[[str], Awaitable[Any]]) -> Any:
    return await edit((await page).items[0].id)


@pytest.fixture
async def project_id(office: Office) -> str:
    """Of a project with one of each thing."""
    project = await office.projects.create(ORG, "P", actor="a")
    await office.service_accounts.create(ORG, project.id, "s", actor="a")
    await office.limits.update_project(ORG, project.id, actor="a", requests_per_minute=9)
    await office.budgets.set(ORG, project.id, hard_nanos=1, actor="a")
    await office.budgets.add_alert(ORG, project.id, threshold_nanos=1, actor="a")
    return project.id


@pytest.mark.parametrize("what", EDITS)
async def test_of_two_administrators_one_is_told(office: Office, project_id: str, what: str) -> None:
    """Both saw the same version and write at once: one change is made, the other is a Conflict."""
    edit = EDITS[what]
    seen = (await edit(office, project_id, "x", None)).version
    both = await asyncio.gather(
        edit(office, project_id, "yy", seen), edit(office, project_id, "zzz", seen), return_exceptions=True
    )
    refused = [r for r in both if isinstance(r, BaseException)]
    assert [type(r) for r in refused] == [Conflict]
    (made,) = [r for r in both if not isinstance(r, BaseException)]
    assert made.version == seen + 1
    with pytest.raises(Conflict):
        await edit(office, project_id, "x", seen)
    await edit(office, project_id, "xxxx", made.version)


async def test_many_first_limits_at_once(office: Office, project_id: str) -> None:
    """Where there was no row yet: each is made or told, and no more than one with version 0 is made."""
    key = (await office.keys.list(ORG, project_id)).items[0].id
    results = await asyncio.gather(
        *(
            office.limits.update_key(ORG, project_id, key, actor="a", requests_per_minute=i, version=0)
            for i in range(1, 6)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(r, Conflict) for r in results) == 4
    assert (await office.limits.of_key(ORG, project_id, key)).version == 1


async def test_other_owners_things_are_not_found(office: Office, project_id: str) -> None:
    """By another project of the organization, and by another organization, as if they were not there."""
    rival = (await office.projects.create(ORG, "R", actor="a")).id
    other = (await office.organizations.create("O", actor="a")).id
    key = (await office.keys.list(ORG, project_id)).items[0].id
    account = (await office.service_accounts.list(ORG, project_id)).items[0].id
    alert = (await office.budgets.alerts(ORG, project_id)).items[0].id
    who: dict[str, Any] = {"actor": "a"}
    before = await everything(office, project_id)
    for pair in ((ORG, rival), (other, project_id), (ORG, None), (other, None)):
        owner: Any = pair
        attempts = [
            office.keys.get(*owner, key),
            office.keys.update(*owner, key, name="x", **who),
            office.keys.rotate(*owner, key, **who),
            office.keys.revoke(*owner, key, **who),
            office.budgets.get_alert(*owner, alert),
            office.budgets.update_alert(*owner, alert, threshold_nanos=5, **who),
            office.budgets.remove_alert(*owner, alert, **who),
        ]
        if pair[1] is not None:
            attempts += [
                office.limits.of_key(*owner, key),
                office.limits.update_key(*owner, key, requests_per_minute=5, **who),
                office.service_accounts.get(*owner, account),
                office.service_accounts.update(*owner, account, name="x", **who),
                office.service_accounts.delete(*owner, account, **who),
                office.keys.create(*owner, name="x", service_account_id=account, **who),
            ]
        for attempt in attempts:
            with pytest.raises(NotFound):
                await attempt
    owner = (other, project_id)
    for attempt in (
        office.projects.get(*owner),
        office.projects.update(*owner, name="x", **who),
        office.projects.archive(*owner, **who),
        office.keys.list(*owner),
        office.keys.create(*owner, name="x", **who),
        office.service_accounts.list(*owner),
        office.service_accounts.create(*owner, "x", **who),
        office.limits.of_project(*owner),
        office.limits.update_project(*owner, requests_per_minute=5, **who),
        office.budgets.get(*owner),
        office.budgets.set(*owner, hard_nanos=5, **who),
        office.budgets.remove(*owner, **who),
        office.budgets.alerts(*owner),
        office.budgets.add_alert(*owner, threshold_nanos=5, **who),
        office.keys.find(other, key),
        office.projects.find(other, project_id),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await everything(office, project_id) == before
    assert (await office.projects.list(other)).items == ()


async def everything(office: Office, project_id: str) -> list[Any]:
    return [
        await office.projects.get(ORG, project_id),
        await office.keys.list(ORG, project_id),
        await office.service_accounts.list(ORG, project_id),
        await office.limits.of_project(ORG, project_id),
        await office.budgets.get(ORG, project_id),
        await office.budgets.alerts(ORG, project_id),
    ]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_show_everything_once(database: Database, order: Any) -> None:
    """In one order, forwards and backwards, also when all were made in the same second."""
    office = open_office(database, clock=ManualClock())
    for name in "abcdefg":
        await office.projects.create(ORG, name, actor="a")
    whole = (await office.projects.list(ORG, Cut(limit=100, order=order))).items
    assert len(whole) == 8
    for limit in (1, 3, 8):
        seen: list[Any] = []
        after = None
        while True:
            page = await office.projects.list(ORG, Cut(after=after, limit=limit, order=order))
            seen += page.items
            if not page.has_more:
                break
            after = page.items[-1].id
        assert tuple(seen) == whole
    back = await office.projects.list(ORG, Cut(before=whole[5].id, limit=3, order=order))
    assert (back.items, back.has_more) == (whole[2:5], True)
    back = await office.projects.list(ORG, Cut(before=whole[2].id, limit=3, order=order))
    assert (back.items, back.has_more) == (whole[:2], False)


async def test_a_cursor_may_be_gone_from_the_list(office: Office, project_id: str) -> None:
    """A key that is revoked between two pages still says where the next one starts."""
    keys = [(await office.keys.create(ORG, project_id, name=n, actor="a")).key for n in "abc"]
    await office.keys.revoke(ORG, project_id, keys[0].id, actor="a")
    page = await office.keys.list(ORG, project_id, Cut(after=keys[0].id))
    assert [k.name for k in page.items] == ["b", "c"]


@pytest.mark.parametrize(
    ("cut", "param"),
    [
        (Cut(limit=0), "limit"),
        (Cut(limit=101), "limit"),
        (Cut(after="x"), "after"),
        (Cut(before="x"), "before"),
        (Cut(after="default", before="default"), "before"),
        (Cut(order="up"), "order"),  # type: ignore[arg-type]
    ],
)
async def test_bad_cuts_are_refused(office: Office, cut: Cut, param: str) -> None:
    """By the parameter's name."""
    with pytest.raises(InvalidRequest) as caught:
        await office.projects.list(ORG, cut)
    assert caught.value.param == param


BAD: dict[str, tuple[str, Callable[[Office, str], Awaitable[Any]]]] = {
    "no name": ("name", lambda o, p: o.projects.create(ORG, "  ", actor="a")),
    "long name": ("name", lambda o, p: o.projects.create(ORG, "x" * 257, actor="a")),
    "two lines": ("name", lambda o, p: o.keys.create(ORG, p, name="a\nb", actor="a")),
    "no weight": ("weight", lambda o, p: o.projects.update(ORG, p, weight=0, actor="a")),
    "hardly a weight": ("weight", lambda o, p: o.projects.update(ORG, p, weight=1e-320, actor="a")),
    "too great a weight": ("weight", lambda o, p: o.projects.update(ORG, p, weight=1001, actor="a")),
    "not a weight": ("weight", lambda o, p: o.projects.update(ORG, p, weight=float("nan"), actor="a")),
    "negative limit": (
        "tokens_per_minute",
        lambda o, p: o.limits.update_project(ORG, p, tokens_per_minute=-1, actor="a"),
    ),
    "no requests": (
        "requests_per_minute",
        lambda o, p: o.limits.update_project(ORG, p, requests_per_minute=0, actor="a"),
    ),
    "unknown scope": ("scopes", lambda o, p: o.keys.create(ORG, p, name="k", scopes=["root"], actor="a")),
    "admin scope": ("scopes", lambda o, p: o.keys.create(ORG, p, name="k", scopes=["admin"], actor="a")),
    "no scope": ("scopes", lambda o, p: o.keys.create(ORG, p, name="k", scopes=[], actor="a")),
    "past expiry": ("expires_at", lambda o, p: o.keys.create(ORG, p, name="k", expires_at=START, actor="a")),
    "past expiry of an account": (
        "expires_at",
        lambda o, p: o.service_accounts.create(ORG, p, "s", expires_at=1, actor="a"),
    ),
    "no budget": ("hard_nanos", lambda o, p: o.budgets.set(ORG, p, hard_nanos=0, actor="a")),
    "huge budget": ("hard_nanos", lambda o, p: o.budgets.set(ORG, p, hard_nanos=10**19, actor="a")),
    "odd period": ("period", lambda o, p: o.budgets.set(ORG, p, hard_nanos=1, period="year", actor="a")),
    "no threshold": (
        "threshold_nanos",
        lambda o, p: o.budgets.add_alert(ORG, p, threshold_nanos=0, actor="a"),
    ),
    "odd webhook": (
        "webhook_url",
        lambda o, p: o.budgets.add_alert(ORG, p, threshold_nanos=1, webhook_url="file:///x", actor="a"),
    ),
    "odd mail": (
        "recipients",
        lambda o, p: o.budgets.add_alert(ORG, p, threshold_nanos=1, recipients=["x"], actor="a"),
    ),
    "odd role": (
        "role",
        lambda o, p: _with(
            o.service_accounts.list(ORG, p),
            lambda k: o.service_accounts.update(ORG, p, k, role="king", actor="a"),
        ),
    ),
    "long overlap": (
        "overlap_s",
        lambda o, p: _with(
            o.keys.list(ORG, p), lambda k: o.keys.rotate(ORG, p, k, overlap_s=10**9, actor="a")
        ),
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_input_is_refused_by_name(office: Office, project_id: str, what: str) -> None:
    """And nothing is written."""
    entries = len((await office.audit.list(ORG, cut=Cut(limit=100))).items)
    param, attempt = BAD[what]
    with pytest.raises(InvalidRequest) as caught:
        await attempt(office, project_id)
    assert caught.value.param == param
    assert len((await office.audit.list(ORG, cut=Cut(limit=100))).items) == entries


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


@given(anything)
def test_checks_accept_or_refuse_and_nothing_else(value: Any) -> None:
    """Whatever JSON may hold: a value within bounds comes back, all else is an InvalidRequest."""
    for check in (
        lambda v: check_name(v),
        lambda v: check_count(v, "limit"),
        lambda v: check_weight(v),
        lambda v: check_url(v),
    ):
        with contextlib.suppress(InvalidRequest):
            assert check(value) is None or type(check(value)) in (str, int, float)
