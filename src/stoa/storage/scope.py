"""The one place where reads and writes are confined to a project.

Every session has a scope. Statements of the ORM that touch a `ProjectOwned` table get `project_id = …` added,
wherever in the statement they do; new and changed rows must carry that project. What cannot be confined is
refused: SQL as text, tables named without their class, inserts from a query. A session without a scope may not
touch such tables at all, so that forgetting is an error and not a leak. Administrators use `EVERY_PROJECT`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import ColumnClause, Delete, Insert, SelectBase, Table, TextClause, Update, event, inspect
from sqlalchemy.orm import InstanceState, ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import AliasedReturnsRows

from stoa.storage.base import Base, ProjectItself, ProjectOwned

_SCOPE = "stoa.scope"
_READ_ONLY = "stoa.read_only"


class OutOfScope(AssertionError):
    """A mistake of ours, never the caller's: a statement or row reaches beyond its session's scope."""


@dataclass(frozen=True)
class Scope:
    """`project_id` None: every project."""

    project_id: str | None


EVERY_PROJECT = Scope(None)


class ScopedSession(Session):
    """The session class that `Database` uses; the events below belong to it alone."""

    def _refuse_bulk(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise OutOfScope("the session's bulk methods are not confined; use execute(insert(…), rows)")

    bulk_save_objects = _refuse_bulk
    bulk_insert_mappings = _refuse_bulk
    bulk_update_mappings = _refuse_bulk


def set_scope(session: Session, scope: Scope | None, *, read_only: bool = False) -> None:
    session.info[_SCOPE] = scope
    session.info[_READ_ONLY] = read_only


@event.listens_for(ScopedSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    statement: Any = state.statement
    if isinstance(statement, Insert | Update | Delete) and state.session.info.get(_READ_ONLY):
        raise OutOfScope("a session for reading writes")
    elements = list(visitors.iterate(statement))
    confined = _confined_tables()
    has_text = any(isinstance(e, TextClause) for e in elements)
    if not has_text and not any(_table_name(e) in confined for e in elements):
        return
    project_id = _scope(state.session).project_id
    if project_id is None:
        return
    if has_text:
        raise OutOfScope("SQL as text cannot be confined to a project")
    _check_classes(statement, confined)
    if isinstance(statement, Insert | Update | Delete):
        _check_target(statement, elements, confined)
    if isinstance(statement, Insert | Update) and _table_name(statement.table) in confined:
        _check_values(state, project_id)
    if not isinstance(statement, Insert):
        _add_criteria(state, project_id)


def _add_criteria(state: ORMExecuteState, project_id: str) -> None:
    statement: Any = state.statement
    state.statement = statement.options(
        with_loader_criteria(ProjectOwned, lambda cls: cls.project_id == project_id, include_aliases=True),
        with_loader_criteria(ProjectItself, lambda cls: cls.id == project_id, include_aliases=True),
    )


def _table_name(element: Any) -> str | None:
    """Of the table that an element is, or is a column of, under whatever alias; None for all else."""
    found = element.table if isinstance(element, ColumnClause) else element
    while isinstance(found, AliasedReturnsRows):
        found = found.element
    return found.name if isinstance(found, Table) else None


def _check_classes(statement: Any, confined: frozenset[str]) -> None:
    """The ORM adds criteria to classes and their attributes; a bare table or column would escape them. Looks at
    each query inside by itself."""
    level = _level(statement)
    by_class = {_table_name(e) for e in level if "parententity" in e._annotations}
    for element in level:
        if (name := _table_name(element)) not in confined:
            continue
        bare_alias = _is_of_alias(element) and "parententity" not in element._annotations
        if name not in by_class or bare_alias:
            raise OutOfScope(
                f"{name} is named without its class: a bare table cannot be confined to a project"
            )
    for element in level:
        if isinstance(element, SelectBase) and element is not statement:
            _check_classes(element, confined)


def _level(statement: Any) -> list[Any]:
    """The elements of a statement, down to the queries inside it and without what is in those."""
    found, left = [statement], list(statement.get_children())
    while left:
        element = left.pop()
        found.append(element)
        if not isinstance(element, SelectBase):
            left.extend(element.get_children())
    return found


def _is_of_alias(element: Any) -> bool:
    return isinstance(element, ColumnClause) and isinstance(element.table, AliasedReturnsRows)


def _check_target(statement: Any, elements: list[Any], confined: frozenset[str]) -> None:
    """Criteria reach the target of an UPDATE or DELETE and the queries inside, not what is joined to it; of an
    INSERT they reach nothing."""
    if isinstance(statement, Insert):
        foreign = [e for e in elements if isinstance(e, SelectBase)]
    else:
        inside = {id(e) for q in elements if isinstance(q, SelectBase) for e in visitors.iterate(q)}
        foreign = [
            e
            for e in elements
            if id(e) not in inside and _table_name(e) in confined and _table_name(e) != statement.table.name
        ]
    if foreign:
        raise OutOfScope("a write that draws on other tables of projects cannot be confined to one")


def _check_values(state: ORMExecuteState, project_id: str) -> None:
    """Rows that a statement writes by value must be the project's own."""
    statement: Any = state.statement
    if isinstance(statement, Insert):
        if statement._post_values_clause is not None:
            raise OutOfScope("an insert over an existing row cannot be confined to a project")
    elif isinstance(state.parameters, list):
        raise OutOfScope("an update by primary keys cannot be confined to a project")
    column = "project_id" if "project_id" in statement.table.c else "id"
    for row in _rows_of(state):
        said = {getattr(key, "key", key): value for key, value in row.items()}
        if column not in said:
            if isinstance(statement, Insert):
                raise OutOfScope("a row is written without its project")
        elif getattr(said[column], "value", said[column]) != project_id:
            raise OutOfScope("a row is written into another project")


def _rows_of(state: ORMExecuteState) -> list[dict[Any, Any]]:
    """What a statement writes, a row each: VALUES and SET first, its parameters over them."""
    statement: Any = state.statement
    common = {**(statement._values or {}), **dict(getattr(statement, "_ordered_values", None) or ())}
    parameters: Any = state.parameters or {}
    rows = list(parameters) if isinstance(parameters, list) else [parameters]
    rows = [{**common, **row} for row in rows]
    return [row for many in statement._multi_values for row in many] or rows


def _confined_tables() -> frozenset[str]:
    """Names of the tables whose rows belong to a project, and of the projects' own."""
    return frozenset(
        mapper.local_table.name  # type: ignore[attr-defined]
        for mapper in Base.registry.mappers
        if issubclass(mapper.class_, ProjectOwned | ProjectItself)
    )


@event.listens_for(ScopedSession, "before_flush")
def _check_rows(session: Session, context: Any, instances: Any) -> None:
    changed = (*session.new, *session.dirty, *session.deleted)
    if changed and session.info.get(_READ_ONLY):
        raise OutOfScope("a session for reading writes")
    for row in changed:
        if isinstance(row, ProjectOwned | ProjectItself):
            _check_row(session, row)


@event.listens_for(ProjectOwned, "load", propagate=True)
@event.listens_for(ProjectItself, "load", propagate=True)
def _check_loaded(row: Any, context: Any) -> None:
    """Whatever way it came: a row of another project is not handed out. (A merge has no context: what it writes
    is looked at in the flush.)"""
    if context is not None and isinstance(context.session, ScopedSession):
        _check_row(context.session, row)


def _check_row(session: Session, row: ProjectOwned | ProjectItself) -> None:
    scope = _scope(session)
    if scope.project_id is None:
        return
    name = "project_id" if isinstance(row, ProjectOwned) else "id"
    state: InstanceState[Any] = inspect(row)
    before = state.committed_state.get(name, scope.project_id)
    new = state.transient or state.pending
    if state.dict.get(name) != scope.project_id or (not new and before != scope.project_id):
        raise OutOfScope("a row of another project")


def _scope(session: Session) -> Scope:
    scope: Scope | None = session.info.get(_SCOPE)
    if scope is None:
        raise OutOfScope("a session without a scope touches rows of projects")
    return scope
