"""Spend limits and alerts, of the organization and of its projects: `…/spend_limit` and `…/spend_alerts`.

Amounts are whole cents here and nano-dollars inside; an amount finer than a cent is shown rounded up. Beyond
OpenAI's: a limit's `interval` can be "total", over all time, and an alert can call a `webhook_url`. Alerts follow
the interval of the spend limit beside them, a month where there is none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from stoa.errors import InvalidRequest, NotFound
from stoa.server.organization.asking import Ask, Endpoint, kept
from stoa.server.organization.lists import Deleted, ObjectList, ends
from stoa.server.organization.projects import ONE as PROJECT
from stoa.server.organization.query import ListQuery, query_reader
from stoa.server.organization.reach import period_start_s, spent_nanos
from stoa.server.wire import body_reader
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.budgets import SpendAlert, SpendLimit
from stoa.tenancy.checks import KEEP, MAX_NANOS

CENT_NANOS = 10**7
ORGANIZATION = "/v1/organization"
Interval = Literal["month", "total"]
Cents = Annotated[int, msgspec.Meta(ge=1, le=MAX_NANOS // CENT_NANOS)]


class Enforcement(msgspec.Struct, frozen=True):
    """`status`: "enforcing" when the limit is reached and requests are refused, else "inactive"."""

    status: str


class SpendLimitObject(msgspec.Struct, frozen=True):
    object: str
    threshold_amount: int
    interval: str
    enforcement: Enforcement
    version: int
    currency: str = "USD"


class SpendLimitDeleted(msgspec.Struct, frozen=True):
    object: str
    deleted: bool = True


class UpdateSpendLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold_amount: Cents
    interval: Interval = "month"
    currency: Literal["USD"] = "USD"
    version: int | None = None


class NotificationChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recipients: list[str] = msgspec.field(default_factory=list)
    subject_prefix: str | None = None
    type: Literal["email"] = "email"


class SpendAlertObject(msgspec.Struct, frozen=True):
    id: str
    object: str
    threshold_amount: int
    interval: str
    notification_channel: NotificationChannel
    webhook_url: str | None
    created_at: int
    version: int
    currency: str = "USD"


class SpendAlertList(ObjectList[SpendAlertObject], frozen=True):
    pass


class CreateSpendAlert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold_amount: Cents
    interval: Interval | None = None
    notification_channel: NotificationChannel | None = None
    webhook_url: str | None = None
    currency: Literal["USD"] = "USD"


class UpdateSpendAlert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold_amount: Cents | msgspec.UnsetType = msgspec.UNSET
    interval: Interval | None = None
    notification_channel: NotificationChannel | msgspec.UnsetType = msgspec.UNSET
    webhook_url: str | msgspec.UnsetType | None = msgspec.UNSET
    currency: Literal["USD"] = "USD"
    version: int | None = None


_read_limit = body_reader(UpdateSpendLimit)
_read_create = body_reader(CreateSpendAlert)
_read_update = body_reader(UpdateSpendAlert)
_read_query = query_reader(ListQuery)


async def retrieve_limit(ask: Ask) -> SpendLimitObject:
    return await _limit(ask, await ask.office.budgets.get(ask.organization_id, ask.of_project()))


async def set_limit(ask: Ask) -> SpendLimitObject:
    body = await _read_limit(ask.request, ask.max_body_bytes)
    limit = await ask.office.budgets.set(
        ask.organization_id,
        ask.of_project(),
        actor=ask.actor,
        hard_nanos=body.threshold_amount * CENT_NANOS,
        period=body.interval,
        version=ask.version(body.version),
    )
    return await _limit(ask, limit)


async def delete_limit(ask: Ask) -> SpendLimitDeleted:
    project_id = ask.of_project()
    await ask.office.budgets.remove(ask.organization_id, project_id, actor=ask.actor, version=ask.version())
    return SpendLimitDeleted(f"{_kind(project_id)}.spend_limit.deleted")


async def list_alerts(ask: Ask) -> SpendAlertList:
    cut, project_id = _read_query(ask.request).cut(), ask.of_project()
    page = await ask.office.budgets.alerts(ask.organization_id, project_id, cut)
    interval = await _interval(ask, project_id)
    data = [_alert(alert, interval) for alert in page.items]
    return SpendAlertList(data, *ends(data), page.has_more)


async def create_alert(ask: Ask) -> SpendAlertObject:
    body = await _read_create(ask.request, ask.max_body_bytes)
    project_id, channel = ask.of_project(), body.notification_channel or NotificationChannel()
    interval = await _interval(ask, project_id, body.interval)
    alert = await ask.office.budgets.add_alert(
        ask.organization_id,
        project_id,
        actor=ask.actor,
        threshold_nanos=body.threshold_amount * CENT_NANOS,
        webhook_url=body.webhook_url,
        recipients=channel.recipients,
        subject_prefix=channel.subject_prefix,
    )
    return _alert(alert, interval)


async def retrieve_alert(ask: Ask) -> SpendAlertObject:
    project_id = ask.of_project()
    alert = await ask.office.budgets.get_alert(ask.organization_id, project_id, ask.id("alert_id"))
    return _alert(alert, await _interval(ask, project_id))


async def update_alert(ask: Ask) -> SpendAlertObject:
    body = await _read_update(ask.request, ask.max_body_bytes)
    project_id, cents = ask.of_project(), kept(body.threshold_amount)
    channel = kept(body.notification_channel)
    interval = await _interval(ask, project_id, body.interval)
    alert = await ask.office.budgets.update_alert(
        ask.organization_id,
        project_id,
        ask.id("alert_id"),
        actor=ask.actor,
        threshold_nanos=KEEP if cents is KEEP else cents * CENT_NANOS,
        webhook_url=kept(body.webhook_url),
        recipients=KEEP if channel is KEEP else channel.recipients,
        subject_prefix=KEEP if channel is KEEP else channel.subject_prefix,
        version=ask.version(body.version),
    )
    return _alert(alert, interval)


async def delete_alert(ask: Ask) -> Deleted:
    project_id, alert_id = ask.of_project(), ask.id("alert_id")
    await ask.office.budgets.remove_alert(
        ask.organization_id, project_id, alert_id, actor=ask.actor, version=ask.version()
    )
    return Deleted(alert_id, f"{_kind(project_id)}.spend_alert.deleted")


async def _interval(ask: Ask, project_id: str | None, said: Interval | None = None) -> Interval:
    """Of the alerts. Raises InvalidRequest if the caller thinks of another, NotFound for the project."""
    try:
        found = (await ask.office.budgets.get(ask.organization_id, project_id)).period
    except NotFound as error:
        if error.param is not None:
            raise  # it is the project that is not there, not its budget
        found = "month"
    if said not in (None, found):
        raise InvalidRequest(
            f"interval is {said!r}, but alerts follow the spend limit's, which is {found!r}", param="interval"
        )
    return found


async def _limit(ask: Ask, limit: SpendLimit) -> SpendLimitObject:
    since_s = period_start_s(limit.period, ask.now())
    async with ask.database.read(EVERY_PROJECT) as session:
        spent = await spent_nanos(session, limit.organization_id, limit.project_id, since_s)
    return SpendLimitObject(
        object=f"{_kind(limit.project_id)}.spend_limit",
        threshold_amount=_cents(limit.hard_nanos),
        interval=limit.period,
        enforcement=Enforcement("enforcing" if spent >= limit.hard_nanos else "inactive"),
        version=limit.version,
    )


def _alert(alert: SpendAlert, interval: Interval) -> SpendAlertObject:
    return SpendAlertObject(
        id=alert.id,
        object=f"{_kind(alert.project_id)}.spend_alert",
        threshold_amount=_cents(alert.threshold_nanos),
        interval=interval,
        notification_channel=NotificationChannel(list(alert.recipients), alert.subject_prefix),
        webhook_url=alert.webhook_url,
        created_at=alert.created_at,
        version=alert.version,
    )


def _kind(project_id: str | None) -> str:
    return "organization" if project_id is None else "project"


def _cents(nanos: int) -> int:
    return -(-nanos // CENT_NANOS)


def _endpoints(owner: str, whose: str) -> tuple[Endpoint, ...]:
    limit, alerts, one = f"{owner}/spend_limit", f"{owner}/spend_alerts", f"{owner}/spend_alerts/{{alert_id}}"
    alert: dict[str, Any] = {"answer": SpendAlertObject}
    return (
        Endpoint("get", limit, f"What {whose} may spend", retrieve_limit, SpendLimitObject),
        Endpoint(
            "post", limit, f"Limit what {whose} may spend", set_limit, SpendLimitObject, UpdateSpendLimit
        ),
        Endpoint("delete", limit, "Take the limit away", delete_limit, SpendLimitDeleted),
        Endpoint(
            "get", alerts, f"Alerts about what {whose} spends", list_alerts, SpendAlertList, query=ListQuery
        ),
        Endpoint("post", alerts, "Add an alert", create_alert, body=CreateSpendAlert, **alert),
        Endpoint("get", one, "One alert", retrieve_alert, **alert),
        Endpoint("post", one, "Change an alert", update_alert, body=UpdateSpendAlert, **alert),
        Endpoint("delete", one, "Remove an alert", delete_alert, Deleted),
    )


ENDPOINTS = (*_endpoints(ORGANIZATION, "the organization"), *_endpoints(PROJECT, "a project"))
