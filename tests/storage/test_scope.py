"""No statement reaches from one project into another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import delete, exists, func, insert, literal, select, text, union_all, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from stoa.storage.database import Database
from stoa.storage.scope import EVERY_PROJECT, OutOfScope, Scope
from stoa.tenancy.tables import ApiKey, Organization, Project, ServiceAccount

MINE, THEIRS = Scope("mine"), Scope("theirs")
Reads = Callable[[AsyncSession], Awaitable[Any]]


def account(project_id: str, id_: str = "", name: str = "a") -> ServiceAccount:
    row = ServiceAccount(id=id_ or f"sa-{project_id}", project_id=project_id, name=name, role="none")
    row.created_at, row.version = 1, 1
    return row


def values(project_id: str, id_: str) -> dict[str, Any]:
    return {"id": id_, "project_id": project_id, "name": "n", "role": "none", "created_at": 1, "version": 1}


@pytest.fixture
async def two(database: Database) -> Database:
    """Two projects with a service account each, `sa-mine` and `sa-theirs`, and a key of their organization."""
    async with database.begin(EVERY_PROJECT) as session:
        for id_ in ("mine", "theirs"):
            session.add(
                Project(id=id_, organization_id="default", name=id_, weight=1, created_at=1, version=1)
            )
            session.add(account(id_))
        session.add(admin_key())
    return database


def admin_key() -> ApiKey:
    return ApiKey(
        id="k", organization_id="default", project_id=None, kind="admin", name="k", secret_sha256="x",
        redacted="…", scopes=["admin"], created_by="cli", created_at=1, version=1,
    )  # fmt: skip


async def ids(database: Database) -> list[tuple[str, str, str]]:
    async with database.read(EVERY_PROJECT) as session:
        row = ServiceAccount
        found = await session.execute(select(row.id, row.project_id, row.name).order_by(row.id))
        return [tuple(r) for r in found]


S, A = ServiceAccount, aliased(ServiceAccount)
_SUB = select(S.id, S.project_id).subquery()
READS = {
    "class": select(S.id),
    "rows": select(S),
    "alias": select(A.id),
    "count": select(func.count()).select_from(S),
    "count of a column": select(func.count(S.id)),
    "of one": select(S.id).where(S.id == "sa-theirs"),
    "either": select(S.id).where((S.id == "sa-mine") | (S.project_id == "theirs")),
    "join": select(Organization.id).join(S, S.project_id == "theirs"),
    "implied join": select(Organization.id).where(S.name != Organization.name, S.project_id == "theirs"),
    "join of an alias": select(Organization.id).join(A, A.project_id == "theirs"),
    "subquery": select(Organization.id).where(Organization.id.in_(select(literal("default")).where(S.id == "sa-theirs"))),
    "exists": select(Organization.id).where(exists().where(S.id == "sa-theirs")),
    "scalar subquery": select(Organization.id, select(S.id).where(S.id == "sa-theirs").scalar_subquery()),
    "from a subquery": select(_SUB.c.id).where(_SUB.c.project_id == "theirs"),
    "with": select(select(S.id).cte().c.id),
    "union": union_all(select(S.id), select(S.id)),
    "self join": select(S.id, A.id).join(A, A.id != S.id),
    "projects": select(Project.id),
    "admin keys": select(ApiKey.id),
    "project by join": select(S.id).join(Project, Project.id == "theirs"),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
async def test_no_query_sees_another_projects_row(two: Database, name: str) -> None:
    """Whatever its form; and the same statement then serves the other project with its own."""
    for scope in (MINE, THEIRS, MINE):
        async with two.read(scope) as session:
            rows = (await session.execute(READS[name])).all()
            found = str([r[0].id if isinstance(r[0], S) else tuple(r) for r in rows])
        other = "theirs" if scope is MINE else "mine"
        assert f"sa-{other}" not in found
        assert f"'{other}'" not in found
        if name.startswith("count"):
            assert rows == [(1,)]
        if "theirs" in str(READS[name].compile(compile_kwargs={"literal_binds": True})) and scope is MINE:
            assert not rows or name in ("either", "scalar subquery")
        if name == "admin keys":
            assert not rows


async def test_administrators_see_all(two: Database) -> None:
    """Of every project, and what belongs to none."""
    async with two.read(EVERY_PROJECT) as session:
        assert len((await session.scalars(select(S))).all()) == 2
        assert len((await session.scalars(select(Project))).all()) == 3
        assert await session.get(ApiKey, "k") is not None
        assert await session.scalar(text("SELECT count(*) FROM service_accounts")) == 2


async def test_get_and_merge_find_only_own_rows(two: Database) -> None:
    """By primary key; and a merge of another's key cannot take the row over."""
    async with two.begin(MINE) as session:
        assert await session.get(S, "sa-theirs") is None
        assert await session.get(Project, "theirs") is None
        mine = await session.get(S, "sa-mine")
        assert mine is not None
        await session.refresh(mine)
        mine.name = "b"
    with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"):
        async with two.begin(MINE) as session:
            await session.merge(account("mine", "sa-theirs"))
    assert await ids(two) == [("sa-mine", "mine", "b"), ("sa-theirs", "theirs", "a")]


async def test_bulk_changes_reach_only_own_rows(two: Database) -> None:
    """Updates and deletes without any condition, or with one that names another's row."""
    async with two.begin(MINE) as session:
        await session.execute(update(S).values(name="b"))
        await session.execute(update(S).where(S.id == "sa-theirs").values(name="c"))
        await session.execute(delete(S).where(S.project_id == "theirs"))
    assert await ids(two) == [("sa-mine", "mine", "b"), ("sa-theirs", "theirs", "a")]
    async with two.begin(MINE) as session:
        await session.execute(delete(S))
    assert await ids(two) == [("sa-theirs", "theirs", "a")]


async def test_own_rows_are_written_by_every_route(two: Database) -> None:
    """As objects, by value, as a list of rows."""
    async with two.begin(MINE) as session:
        session.add(account("mine", "1"))
        await session.execute(insert(S).values(**values("mine", "2")))
        await session.execute(insert(S), [values("mine", "3"), values("mine", "4")])
        await session.execute(insert(S).values([values("mine", "5"), values("mine", "6")]))
        await session.execute(update(S).where(S.id == "1").values(project_id="mine", name="b"))
        await session.execute(delete(S).where(S.id.in_(select(S.id).where(S.id == "2"))))
    assert [i for i, project, _ in await ids(two) if project == "mine"] == [
        "1",
        "3",
        "4",
        "5",
        "6",
        "sa-mine",
    ]


async def _add(session: AsyncSession, row: Any) -> None:
    session.add(row)
    await session.flush()


async def _move(session: AsyncSession) -> None:
    row = await session.get(S, "sa-mine")
    assert row is not None
    row.project_id = "theirs"
    await session.flush()


async def _bulk(session: AsyncSession) -> None:
    await session.run_sync(lambda s: s.bulk_insert_mappings(S, [values("theirs", "x")]))


async def _save(session: AsyncSession) -> None:
    await session.run_sync(lambda s: s.bulk_save_objects([account("theirs", "x")]))


_TABLE: Any = S.__table__
_ALIAS = _TABLE.alias()
REFUSED: dict[str, Reads] = {
    "new row": lambda s: _add(s, account("theirs", "x")),
    "new project": lambda s: _add(
        s, Project(id="x", organization_id="default", name="x", weight=1, created_at=1)
    ),
    "moved row": _move,
    "bulk insert": _bulk,
    "bulk save": _save,
    "insert": lambda s: s.execute(insert(S).values(**values("theirs", "x"))),
    "insert of rows": lambda s: s.execute(insert(S), [values("mine", "x"), values("theirs", "y")]),
    "insert of one row": lambda s: s.execute(insert(S), values("theirs", "x")),
    "insert of many values": lambda s: s.execute(
        insert(S).values([values("mine", "x"), values("theirs", "y")])
    ),
    "values and rows": lambda s: s.execute(insert(S).values(project_id="mine"), [values("theirs", "y")]),
    "insert with no project": lambda s: s.execute(
        insert(S).values(id="x", name="n", role="none", created_at=1)
    ),
    "project by query": lambda s: s.execute(
        insert(S).values({**values("", "x"), "project_id": select(literal("theirs")).scalar_subquery()})
    ),
    "insert from a query": lambda s: s.execute(
        insert(S).from_select(["id", "project_id"], select(literal("x"), literal("theirs")))
    ),
    "insert drawing on others": lambda s: s.execute(
        insert(Organization).from_select(["id", "name"], select(S.id, S.name))
    ),
    "upsert": lambda s: s.execute(
        sqlite.insert(S)
        .values(**values("mine", "sa-theirs"))
        .on_conflict_do_update(index_elements=["id"], set_={"name": "x"})
    ),
    "update into another": lambda s: s.execute(update(S).values(project_id="theirs")),
    "update by attribute": lambda s: s.execute(update(S).values({S.project_id: "theirs"})),
    "update by keys": lambda s: s.execute(update(S), [{"id": "sa-theirs", "name": "x"}]),
    "update drawing on others": lambda s: s.execute(
        update(Organization).where(S.id == "sa-theirs").values(name="x")
    ),
    "delete drawing on others": lambda s: s.execute(delete(Organization).where(S.id == "sa-theirs")),
    "text": lambda s: s.execute(text("SELECT * FROM service_accounts")),
    "rows from text": lambda s: s.execute(select(S).from_statement(text("SELECT * FROM service_accounts"))),
    "text inside": lambda s: s.execute(select(S.id).where(text("1=1 OR 1=1"))),
    "bare table": lambda s: s.execute(select(_TABLE)),
    "bare column": lambda s: s.execute(select(_TABLE.c.id)),
    "bare alias": lambda s: s.execute(select(_ALIAS.c.id)),
    "bare count": lambda s: s.execute(select(func.count()).select_from(_TABLE)),
    "bare column beside a class": lambda s: s.execute(select(_ALIAS.c.id, S.id)),
    "bare delete": lambda s: s.execute(delete(_TABLE)),
    "bare update": lambda s: s.execute(update(_TABLE).values(name="x")),
    "bare insert": lambda s: s.execute(insert(_TABLE).values(**values("theirs", "x"))),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_reaches_beyond_is_refused(two: Database, name: str) -> None:
    """As our own mistake, and nothing is changed."""
    before = await ids(two)
    with pytest.raises(OutOfScope):
        async with two.begin(MINE) as session:
            await REFUSED[name](session)
    assert await ids(two) == before


async def test_a_row_that_came_from_elsewhere_is_refused(two: Database) -> None:
    """Another project's object that somebody held on to is neither changed, nor moved, nor deleted."""
    async with two.read(EVERY_PROJECT) as session:
        held = await session.get(S, "sa-theirs")
        assert held is not None

    async def change(field: str, value: str) -> None:
        async with two.begin(MINE) as session:
            session.add(held)
            setattr(held, field, value)

    async def remove() -> None:
        async with two.begin(MINE) as session:
            await session.delete(held)

    for attempt in (lambda: change("name", "x"), lambda: change("project_id", "mine"), remove):
        with pytest.raises(OutOfScope):
            await attempt()
    assert ("sa-theirs", "theirs", "a") in await ids(two)


@pytest.mark.parametrize("name", ["rows", "count", "join", "exists", "subquery", "alias", "projects"])
async def test_a_session_without_a_scope_is_refused(two: Database, name: str) -> None:
    """Forgetting the scope is an error, also for administrators."""
    with pytest.raises(OutOfScope):
        async with two.read() as session:
            await session.execute(READS[name])
    with pytest.raises(OutOfScope):
        async with two.begin() as session:
            await _add(session, account("mine", "x"))


async def test_a_session_for_reading_does_not_write(two: Database) -> None:
    """Neither objects nor statements."""
    with pytest.raises(OutOfScope):
        async with two.read(EVERY_PROJECT) as session:
            await _add(session, account("mine", "x"))
    with pytest.raises(OutOfScope):
        async with two.read(EVERY_PROJECT) as session:
            await session.execute(delete(S))
