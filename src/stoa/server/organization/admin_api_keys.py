"""/v1/organization/admin_api_keys: the keys of those who may ask for what is under /v1/organization."""

from __future__ import annotations

import msgspec

from stoa.server.organization.api_keys import Lifetime
from stoa.server.organization.asking import Ask, Endpoint
from stoa.server.organization.lists import Deleted, ObjectList, ends
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.wire import body_reader
from stoa.tenancy.keys import ApiKey

PATH = "/v1/organization/admin_api_keys"
ONE = f"{PATH}/{{key_id}}"


class AdminKeyOwner(msgspec.Struct, frozen=True):
    """There are no users: `id` is the key, or "cli", that made this one."""

    id: str
    name: str
    created_at: int
    role: str = "owner"
    type: str = "user"
    object: str = "organization.user"


class AdminKeyObject(msgspec.Struct, frozen=True):
    id: str
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: AdminKeyOwner
    version: int
    object: str = "organization.admin_api_key"


class NewAdminKeyObject(AdminKeyObject, frozen=True, kw_only=True):
    """`value`: the secret, shown only now."""

    value: str


class AdminKeyList(ObjectList[AdminKeyObject], frozen=True):
    pass


class CreateAdminKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    expires_in_seconds: Lifetime | None = None


_read_query = query_reader(ListQuery)
_read_create = body_reader(CreateAdminKey)


async def list_keys(ask: Ask) -> AdminKeyList:
    page = await ask.office.keys.list(ask.organization_id, None, _read_query(ask.request).cut())
    data = [_object(key) for key in page.items]
    return AdminKeyList(data, *ends(data), page.has_more)


async def create(ask: Ask) -> NewAdminKeyObject:
    body = await _read_create(ask.request, ask.max_body_bytes)
    new = await ask.office.keys.create(
        ask.organization_id,
        None,
        actor=ask.actor,
        name=body.name,
        expires_at=ask.expiry(body.expires_in_seconds),
    )
    shown = msgspec.structs.asdict(_object(new.key))
    return NewAdminKeyObject(**shown, value=new.secret)


async def retrieve(ask: Ask) -> AdminKeyObject:
    return _object(await ask.office.keys.get(ask.organization_id, None, ask.id("key_id")))


async def delete(ask: Ask) -> Deleted:
    key_id = ask.id("key_id")
    await ask.office.keys.revoke(ask.organization_id, None, key_id, actor=ask.actor, version=ask.version())
    return Deleted(key_id, "organization.admin_api_key.deleted")


def _object(key: ApiKey) -> AdminKeyObject:
    return AdminKeyObject(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        owner=AdminKeyOwner(key.created_by, key.created_by, key.created_at),
        version=key.version,
    )


ENDPOINTS = (
    Endpoint("get", PATH, "The administrators' keys", list_keys, AdminKeyList, query=ListQuery),
    Endpoint("post", PATH, "Make an admin key, shown only now", create, NewAdminKeyObject, CreateAdminKey),
    Endpoint("get", ONE, "One admin key, without its secret", retrieve, AdminKeyObject),
    Endpoint("delete", ONE, "Revoke an admin key for good", delete, Deleted),
)
