"""The one place where reads and writes are confined to a project.

Every session has a scope. Statements of the ORM that touch a `ProjectOwned` table get `project_id = …` added;
new and changed rows must carry that project. A session without a scope may not touch such tables at all, so
that forgetting is an error and not a leak. Administrators use `EVERY_PROJECT`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from stoa.storage.base import ProjectOwned

_SCOPE = "stoa.scope"


@dataclass(frozen=True)
class Scope:
    """`project_id` None: every project."""

    project_id: str | None


EVERY_PROJECT = Scope(None)


class ScopedSession(Session):
    """The session class that `Database` uses; the events below belong to it alone."""


def set_scope(session: Session, scope: Scope | None) -> None:
    session.info[_SCOPE] = scope


@event.listens_for(ScopedSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    touched = [m for m in state.all_mappers if issubclass(m.class_, ProjectOwned)]
    if not touched or state.is_column_load or state.is_relationship_load:
        return
    project_id = _project(state.session)
    if project_id is None:
        return
    if state.is_insert:
        return  # rows are checked where they are built, by `owned`
    state.statement = state.statement.options(
        with_loader_criteria(ProjectOwned, lambda cls: cls.project_id == project_id, include_aliases=True)
    )


@event.listens_for(ScopedSession, "before_flush")
def _check_rows(session: Session, context: Any, instances: Any) -> None:
    rows = [r for r in (*session.new, *session.dirty, *session.deleted) if isinstance(r, ProjectOwned)]
    if not rows:
        return
    project_id = _project(session)
    for row in rows:
        assert project_id in (None, row.project_id), "a row of another project"


def _project(session: Session) -> str | None:
    scope = session.info.get(_SCOPE)
    assert scope is not None, "a session without a scope touches rows of projects"
    return scope.project_id  # type: ignore[no-any-return]
