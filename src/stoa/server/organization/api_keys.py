"""/v1/organization/projects/{project_id}/api_keys. Keys are made for service accounts, see `service_accounts.py`, or
at the command line.

Beyond OpenAI's: a key can be renamed and rotated, and has rate limits of its own. They are shown where one key is
asked for, not in lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from stoa.errors import NotFound
from stoa.server.organization.asking import Ask, Endpoint, kept
from stoa.server.organization.lists import Deleted, ObjectList, ends
from stoa.server.organization.projects import ONE as PROJECT
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.organization.rate_limits import RateLimitObject, UpdateRateLimit, rate_limit
from stoa.server.wire import body_reader
from stoa.tenancy.checks import KEEP, MAX_TIME_S, check_version
from stoa.tenancy.keys import MAX_OVERLAP_S, ApiKey
from stoa.tenancy.service_accounts import ServiceAccount

PATH = f"{PROJECT}/api_keys"
ONE = f"{PATH}/{{key_id}}"
EVERYTHING = ("all",)  # what OpenAI's empty list of scopes means
Lifetime = Annotated[int, msgspec.Meta(ge=1, le=MAX_TIME_S // 2)]  # seconds


class KeyOwnerAccount(msgspec.Struct, frozen=True):
    id: str
    name: str
    role: str
    created_at: int


class KeyOwnerUser(msgspec.Struct, frozen=True):
    """There are no users: `id` is the key, or "cli", that made this one."""

    id: str
    name: str
    created_at: int
    email: str = ""
    role: str = "owner"


class KeyOwner(msgspec.Struct, frozen=True):
    type: str
    service_account: KeyOwnerAccount | None = None
    user: KeyOwnerUser | None = None


class ApiKeyObject(msgspec.Struct, frozen=True):
    id: str
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: KeyOwner
    scopes: list[str]
    version: int
    owner_project_access: str = "active"
    rate_limits: RateLimitObject | msgspec.UnsetType = msgspec.UNSET
    object: str = "organization.project.api_key"


class ApiKeyList(ObjectList[ApiKeyObject], frozen=True):
    pass


class RotatedKey(msgspec.Struct, frozen=True):
    """`value`: the new secret, shown only now. `previous_until`: till when the old one is good too."""

    id: str
    name: str
    value: str
    created_at: int
    expires_at: int | None
    previous_until: int | None
    version: int
    object: str = "organization.project.api_key"


class UpdateApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`expires_in_seconds` null: never. `scopes` []: all."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    scopes: list[str] | msgspec.UnsetType = msgspec.UNSET
    expires_in_seconds: Lifetime | msgspec.UnsetType | None = msgspec.UNSET
    rate_limits: UpdateRateLimit | None = None
    version: int | None = None


class RotateApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`overlap_seconds`: how long the old secret stays good."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = 0
    version: int | None = None


class ApiKeyQuery(ListQuery, frozen=True, forbid_unknown_fields=True):
    owner_project_access: Literal["active", "inactive", "any"] = "any"


_read_query = query_reader(ApiKeyQuery)
_read_update = body_reader(UpdateApiKey)
_read_rotate = body_reader(RotateApiKey)


async def list_keys(ask: Ask) -> ApiKeyList:
    query, project_id = _read_query(ask.request), ask.id("project_id")
    page = await ask.office.keys.list(ask.organization_id, project_id, query.cut())
    if query.owner_project_access == "inactive":  # who loses a project loses its keys
        return ApiKeyList([], None, None, has_more=False)
    accounts = await _accounts(ask, project_id, page.items)
    data = [_object(key, accounts) for key in page.items]
    return ApiKeyList(data, *ends(data), page.has_more)


async def retrieve(ask: Ask) -> ApiKeyObject:
    key = await ask.office.keys.get(ask.organization_id, ask.id("project_id"), ask.id("key_id"))
    return await _with_limits(ask, key)


async def update(ask: Ask) -> ApiKeyObject:
    body = await _read_update(ask.request, ask.max_body_bytes)
    where = ask.organization_id, ask.id("project_id"), ask.id("key_id")
    version = ask.version(body.version)
    said = (body.name, body.scopes, body.expires_in_seconds)
    if body.rate_limits is None or any(value is not msgspec.UNSET for value in said):
        scopes, expires_in_s = kept(body.scopes), kept(body.expires_in_seconds)
        key = await ask.office.keys.update(
            *where,
            actor=ask.actor,
            name=kept(body.name),
            scopes=scopes or EVERYTHING,
            expires_at=KEEP if expires_in_s is KEEP else ask.expiry(expires_in_s),
            version=version,
        )
    else:
        key = await ask.office.keys.get(*where)
        check_version(version, key.version)
    if body.rate_limits is not None:
        limits = body.rate_limits
        await ask.office.limits.update_key(*where, actor=ask.actor, version=limits.version, **limits.said())
    return await _with_limits(ask, key)


async def rotate(ask: Ask) -> RotatedKey:
    body = RotateApiKey()
    if ask.request.headers.get("content-length", "0") != "0" or "transfer-encoding" in ask.request.headers:
        body = await _read_rotate(ask.request, ask.max_body_bytes)
    where = ask.organization_id, ask.id("project_id"), ask.id("key_id")
    check_version(ask.version(body.version), (await ask.office.keys.get(*where)).version)
    new = await ask.office.keys.rotate(*where, actor=ask.actor, overlap_s=body.overlap_seconds)
    key = new.key
    return RotatedKey(
        id=key.id,
        name=key.name,
        value=new.secret,
        created_at=key.created_at,
        expires_at=key.expires_at,
        previous_until=key.previous_until,
        version=key.version,
    )


async def delete(ask: Ask) -> Deleted:
    key_id = ask.id("key_id")
    await ask.office.keys.revoke(
        ask.organization_id, ask.id("project_id"), key_id, actor=ask.actor, version=ask.version()
    )
    return Deleted(key_id, "organization.project.api_key.deleted")


async def _with_limits(ask: Ask, key: ApiKey) -> ApiKeyObject:
    assert key.project_id is not None
    accounts = await _accounts(ask, key.project_id, [key])
    limits = await ask.office.limits.of_key(ask.organization_id, key.project_id, key.id)
    return msgspec.structs.replace(_object(key, accounts), rate_limits=rate_limit(key.id, limits))


async def _accounts(ask: Ask, project_id: str, keys: Sequence[ApiKey]) -> dict[str, ServiceAccount]:
    """The service accounts that the keys belong to; one that is deleted at this moment may be missing."""
    found: dict[str, ServiceAccount] = {}
    for account_id in sorted({k.service_account_id for k in keys if k.service_account_id is not None}):
        with contextlib.suppress(NotFound):
            found[account_id] = await ask.office.service_accounts.get(
                ask.organization_id, project_id, account_id
            )
    return found


def _object(key: ApiKey, accounts: dict[str, ServiceAccount]) -> ApiKeyObject:
    return ApiKeyObject(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=key.created_at,
        last_used_at=key.last_used_at,
        expires_at=key.expires_at,
        owner=_owner(key, accounts),
        scopes=list(key.scopes),
        version=key.version,
    )


def _owner(key: ApiKey, accounts: dict[str, ServiceAccount]) -> KeyOwner:
    account = accounts.get(key.service_account_id or "")
    if account is None:
        return KeyOwner("user", user=KeyOwnerUser(key.created_by, key.created_by, key.created_at))
    shown = KeyOwnerAccount(account.id, account.name, account.role, account.created_at)
    return KeyOwner("service_account", service_account=shown)


ENDPOINTS = (
    Endpoint("get", PATH, "A project's keys", list_keys, ApiKeyList, query=ApiKeyQuery),
    Endpoint("get", ONE, "One key, without its secret", retrieve, ApiKeyObject),
    Endpoint(
        "post", ONE, "Change a key's scopes, expiry, name or limits", update, ApiKeyObject, UpdateApiKey
    ),
    Endpoint("delete", ONE, "Revoke a key for good", delete, Deleted),
    Endpoint(
        "post", f"{ONE}/rotate", "Give a key a new secret, shown only now", rotate, RotatedKey, RotateApiKey
    ),
)
