"""/v1/organization/projects. Beyond OpenAI's fields: `weight`, a project's share under load, and `version`."""

from __future__ import annotations

import msgspec

from stoa.server.organization.asking import Ask, Endpoint, kept
from stoa.server.organization.lists import ObjectList, ends
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.wire import body_reader
from stoa.tenancy.projects import Project

PATH = "/v1/organization/projects"
ONE = f"{PATH}/{{project_id}}"


class ProjectObject(msgspec.Struct, frozen=True):
    id: str
    name: str
    status: str
    created_at: int
    archived_at: int | None
    weight: float
    version: int
    object: str = "organization.project"


class ProjectList(ObjectList[ProjectObject], frozen=True):
    pass


class CreateProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    weight: float = 1.0


class UpdateProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | msgspec.UnsetType = msgspec.UNSET
    weight: float | msgspec.UnsetType = msgspec.UNSET
    version: int | None = None


class ProjectQuery(ListQuery, frozen=True, forbid_unknown_fields=True):
    include_archived: bool = False


_read_query = query_reader(ProjectQuery)
_read_create = body_reader(CreateProject)
_read_update = body_reader(UpdateProject)


async def list_projects(ask: Ask) -> ProjectList:
    query = _read_query(ask.request)
    page = await ask.office.projects.list(
        ask.organization_id, query.cut(), include_archived=query.include_archived
    )
    data = [_object(project) for project in page.items]
    return ProjectList(data, *ends(data), page.has_more)


async def create(ask: Ask) -> ProjectObject:
    body = await _read_create(ask.request, ask.max_body_bytes)
    project = await ask.office.projects.create(
        ask.organization_id, body.name, actor=ask.actor, weight=body.weight
    )
    return _object(project)


async def retrieve(ask: Ask) -> ProjectObject:
    return _object(await ask.office.projects.get(ask.organization_id, ask.id("project_id")))


async def update(ask: Ask) -> ProjectObject:
    body = await _read_update(ask.request, ask.max_body_bytes)
    project = await ask.office.projects.update(
        ask.organization_id,
        ask.id("project_id"),
        actor=ask.actor,
        name=kept(body.name),
        weight=kept(body.weight),
        version=ask.version(body.version),
    )
    return _object(project)


async def archive(ask: Ask) -> ProjectObject:
    project = await ask.office.projects.archive(
        ask.organization_id, ask.id("project_id"), actor=ask.actor, version=ask.version()
    )
    return _object(project)


def _object(project: Project) -> ProjectObject:
    return ProjectObject(
        id=project.id,
        name=project.name,
        status="archived" if project.is_archived else "active",
        created_at=project.created_at,
        archived_at=project.archived_at,
        weight=project.weight,
        version=project.version,
    )


ENDPOINTS = (
    Endpoint("get", PATH, "The organization's projects", list_projects, ProjectList, query=ProjectQuery),
    Endpoint("post", PATH, "Make a project", create, ProjectObject, CreateProject),
    Endpoint("get", ONE, "One project", retrieve, ProjectObject),
    Endpoint("post", ONE, "Change a project's name or weight", update, ProjectObject, UpdateProject),
    Endpoint("post", f"{ONE}/archive", "Close a project for good", archive, ProjectObject),
)
