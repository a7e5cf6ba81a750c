"""/v1/organization/projects/{project_id}/service_accounts: names under which programs hold a project's keys.

Their keys are made here: with the account, and further ones under `/api_keys`. A secret is shown once.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from stoa.errors import InvalidRequest
from stoa.server.organization.api_keys import EVERYTHING, Lifetime
from stoa.server.organization.asking import Ask, Endpoint, kept
from stoa.server.organization.lists import Deleted, ObjectList, ends
from stoa.server.organization.projects import ONE as PROJECT
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.wire import body_reader
from stoa.tenancy.keys import NewKey
from stoa.tenancy.service_accounts import ServiceAccount

PATH = f"{PROJECT}/service_accounts"
ONE = f"{PATH}/{{service_account_id}}"


class ServiceAccountObject(msgspec.Struct, frozen=True):
    id: str
    name: str
    role: str
    created_at: int
    version: int
    object: str = "organization.project.service_account"


class ServiceAccountKey(msgspec.Struct, frozen=True):
    """`value`: the secret, shown only now."""

    id: str
    name: str
    value: str
    created_at: int
    expires_at: int | None
    object: str = "organization.project.service_account.api_key"


class NewServiceAccountObject(ServiceAccountObject, frozen=True, kw_only=True):
    api_key: ServiceAccountKey | None


class ServiceAccountList(ObjectList[ServiceAccountObject], frozen=True):
    pass


class CreateServiceAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    create_service_account_only: bool | None = None
    expires_in_seconds: Lifetime | None = None


class UpdateServiceAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | msgspec.UnsetType = msgspec.UNSET
    role: Literal["owner", "member", "none"] | msgspec.UnsetType = msgspec.UNSET
    version: int | None = None


class CreateServiceAccountKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without `name` it has the account's; without `scopes` it may do all."""

    name: str | None = None
    scopes: list[str] | None = None
    expires_in_seconds: Lifetime | None = None


_read_query = query_reader(ListQuery)
_read_create = body_reader(CreateServiceAccount)
_read_update = body_reader(UpdateServiceAccount)
_read_create_key = body_reader(CreateServiceAccountKey)


async def list_accounts(ask: Ask) -> ServiceAccountList:
    cut = _read_query(ask.request).cut()
    page = await ask.office.service_accounts.list(ask.organization_id, ask.id("project_id"), cut)
    data = [_object(account) for account in page.items]
    return ServiceAccountList(data, *ends(data), page.has_more)


async def create(ask: Ask) -> NewServiceAccountObject:
    body = await _read_create(ask.request, ask.max_body_bytes)
    alone = bool(body.create_service_account_only)
    if alone and body.expires_in_seconds is not None:
        raise InvalidRequest(
            "expires_in_seconds is of the key, and create_service_account_only makes none",
            param="expires_in_seconds",
        )
    new = await ask.office.service_accounts.create(
        ask.organization_id,
        ask.id("project_id"),
        body.name,
        actor=ask.actor,
        with_key=not alone,
        expires_at=ask.expiry(body.expires_in_seconds),
    )
    shown = msgspec.structs.asdict(_object(new.account))
    return NewServiceAccountObject(**shown, api_key=None if new.key is None else _key(new.key))


async def retrieve(ask: Ask) -> ServiceAccountObject:
    account = await ask.office.service_accounts.get(
        ask.organization_id, ask.id("project_id"), ask.id("service_account_id")
    )
    return _object(account)


async def update(ask: Ask) -> ServiceAccountObject:
    body = await _read_update(ask.request, ask.max_body_bytes)
    account = await ask.office.service_accounts.update(
        ask.organization_id,
        ask.id("project_id"),
        ask.id("service_account_id"),
        actor=ask.actor,
        name=kept(body.name),
        role=kept(body.role),
        version=ask.version(body.version),
    )
    return _object(account)


async def delete(ask: Ask) -> Deleted:
    account_id = ask.id("service_account_id")
    await ask.office.service_accounts.delete(
        ask.organization_id, ask.id("project_id"), account_id, actor=ask.actor, version=ask.version()
    )
    return Deleted(account_id, "organization.project.service_account.deleted")


async def create_key(ask: Ask) -> ServiceAccountKey:
    body = await _read_create_key(ask.request, ask.max_body_bytes)
    project_id, account_id = ask.id("project_id"), ask.id("service_account_id")
    account = await ask.office.service_accounts.get(ask.organization_id, project_id, account_id)
    new = await ask.office.keys.create(
        ask.organization_id,
        project_id,
        actor=ask.actor,
        name=account.name if body.name is None else body.name,
        scopes=body.scopes or EVERYTHING,
        expires_at=ask.expiry(body.expires_in_seconds),
        service_account_id=account_id,
    )
    return _key(new)


def _object(account: ServiceAccount) -> ServiceAccountObject:
    return ServiceAccountObject(
        id=account.id,
        name=account.name,
        role=account.role,
        created_at=account.created_at,
        version=account.version,
    )


def _key(new: NewKey) -> ServiceAccountKey:
    key = new.key
    return ServiceAccountKey(key.id, key.name, new.secret, key.created_at, key.expires_at)


ENDPOINTS = (
    Endpoint("get", PATH, "A project's service accounts", list_accounts, ServiceAccountList, query=ListQuery),
    Endpoint(
        "post",
        PATH,
        "Make a service account and its first key, shown only now",
        create,
        NewServiceAccountObject,
        CreateServiceAccount,
    ),
    Endpoint("get", ONE, "One service account", retrieve, ServiceAccountObject),
    Endpoint(
        "post",
        ONE,
        "Change a service account's name or role",
        update,
        ServiceAccountObject,
        UpdateServiceAccount,
    ),
    Endpoint("delete", ONE, "Delete a service account and revoke its keys", delete, Deleted),
    Endpoint(
        "post",
        f"{ONE}/api_keys",
        "Make a further key for a service account, shown only now",
        create_key,
        ServiceAccountKey,
        CreateServiceAccountKey,
    ),
)
