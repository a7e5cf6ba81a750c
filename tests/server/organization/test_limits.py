"""Rate limits, spend limits and spend alerts, through the official client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError
from openai.resources.admin.organization import AsyncOrganization

from stoa.economics.records import UsageRecord
from stoa.economics.usage import insert_new
from stoa.storage.scope import EVERY_PROJECT
from tests.server.organization.conftest import House

NO_LIMIT = 10**12
MAIL: Any = {"type": "email", "recipients": ["a@b.c"], "subject_prefix": "[spend]"}


async def test_a_project_has_one_rate_limit_for_all_models(admin: AsyncOrganization) -> None:
    """It is always there, under one id, and no limit is a large integer."""
    limits = admin.projects.rate_limits
    (found,) = [x async for x in limits.list_rate_limits("default")]
    assert (found.object, found.model) == ("project.rate_limit", "*")
    assert (found.max_requests_per_1_minute, found.max_tokens_per_1_minute) == (NO_LIMIT, NO_LIMIT)
    changed = await limits.update_rate_limit(
        found.id, project_id="default", max_requests_per_1_minute=60, max_tokens_per_1_minute=NO_LIMIT
    )
    assert (changed.id, changed.max_requests_per_1_minute) == (found.id, 60)
    assert changed.max_tokens_per_1_minute == NO_LIMIT
    (found,) = [x async for x in limits.list_rate_limits("default", limit=1)]
    assert found.model_dump() == changed.model_dump()
    with pytest.raises(NotFoundError):
        await limits.update_rate_limit("rl_other", project_id="default", max_requests_per_1_minute=1)
    with pytest.raises(BadRequestError, match="max_images_per_1_minute"):
        await limits.update_rate_limit(found.id, project_id="default", max_images_per_1_minute=1)


async def test_what_was_read_of_limits_can_be_written_back(raw: httpx.AsyncClient) -> None:
    """Also the large integer, and null takes a limit away; the gate then knows of none."""
    path = "organization/projects/default/rate_limits/rl_default"
    set_ = (await raw.post(path, json={"max_concurrent_requests": 3, "version": 0})).json()
    assert set_["max_concurrent_requests"] == 3
    names = [n for n in set_ if n.startswith("max_")]
    same = await raw.post(path, json={n: set_[n] for n in names}, headers={"If-Match": "1"})
    assert {n: same.json()[n] for n in names} == {n: set_[n] for n in names}
    freed = (await raw.post(path, json={"max_concurrent_requests": None})).json()
    assert freed["max_concurrent_requests"] == NO_LIMIT
    assert (await raw.post(path, json={"version": 0})).status_code == 409
    for wrong in (0, NO_LIMIT + 1, "many"):
        answer = await raw.post(path, json={"max_concurrent_requests": wrong})
        assert answer.json()["error"]["param"] == "max_concurrent_requests"


async def test_a_cursor_of_rate_limits_is_the_one_there_is(raw: httpx.AsyncClient) -> None:
    """After it there is nothing; another one names nothing."""
    path = "organization/projects/default/rate_limits"
    assert (await raw.get(path, params={"after": "rl_default"})).json()["data"] == []
    assert (await raw.get(path, params={"before": "rl_x"})).json()["error"]["param"] == "before"


@pytest.mark.parametrize("owner", ["organization", "project"])
async def test_a_spend_limit_is_set_read_and_taken_away(admin: AsyncOrganization, owner: str) -> None:
    """In cents, for the organization and for a project alike."""
    resource: Any = admin.projects.spend_limit if owner == "project" else admin.spend_limit
    ids = ["default"] if owner == "project" else []
    with pytest.raises(NotFoundError):
        await resource.retrieve(*ids)
    made = await resource.update(*ids, currency="USD", interval="month", threshold_amount=1234)
    assert (made.object, made.currency, made.interval) == (f"{owner}.spend_limit", "USD", "month")
    assert (made.threshold_amount, made.enforcement.status) == (1234, "inactive")
    changed = await resource.update(*ids, currency="USD", interval="total", threshold_amount=1)
    assert (changed.interval, changed.threshold_amount) == ("total", 1)
    assert (await resource.retrieve(*ids)).model_dump() == changed.model_dump()
    deleted = await resource.delete(*ids)
    assert (deleted.object, deleted.deleted) == (f"{owner}.spend_limit.deleted", True)
    with pytest.raises(NotFoundError):
        await resource.retrieve(*ids)
    for wrong in ({"threshold_amount": 0}, {"currency": "EUR"}, {"interval": "week"}):
        said = {"currency": "USD", "interval": "month", "threshold_amount": 1, **wrong}
        with pytest.raises(BadRequestError, match=next(iter(wrong))):
            await resource.update(*ids, **said)


async def test_cents_outside_are_nanodollars_inside(house: House, admin: AsyncOrganization) -> None:
    """What is finer than a cent, from elsewhere, is shown rounded up."""
    await admin.projects.spend_limit.update("default", currency="USD", interval="month", threshold_amount=250)
    budget = await house.office.budgets.get("default", "default")
    assert budget.hard_nanos == 2_500_000_000
    await house.office.budgets.set("default", "default", actor="cli", hard_nanos=1)
    assert (await admin.projects.spend_limit.retrieve("default")).threshold_amount == 1


async def spend(house: House, project_id: str, cost_nanos: int, at_s: float) -> None:
    record = UsageRecord(
        request_id=f"r{at_s}{project_id}",
        project_id=project_id,
        key_id=None,
        model="m",
        cost_nanos=cost_nanos,
        created_at_s=int(at_s),
    )
    async with house.database.begin(EVERY_PROJECT) as session:
        await insert_new(session, house.database.is_sqlite, [record])


async def test_a_limit_that_is_reached_is_enforcing(house: House, admin: AsyncOrganization) -> None:
    """What was spent in the month counts, of the project or of all the organization's projects."""
    red = await admin.projects.create(name="red")
    foreign = await house.office.projects.create(house.other_id, "foreign", actor="cli")
    limit: Any = {"currency": "USD", "interval": "month", "threshold_amount": 100}
    await admin.projects.spend_limit.update(red.id, **limit)
    await admin.spend_limit.update(**limit)
    await spend(house, red.id, 5 * 10**9, house.clock.now_s - 40 * 86_400)
    await spend(house, foreign.id, 5 * 10**9, house.clock.now_s)
    await spend(house, red.id, 999_999_999, house.clock.now_s)
    assert (await admin.projects.spend_limit.retrieve(red.id)).enforcement.status == "inactive"
    assert (await admin.spend_limit.retrieve()).enforcement.status == "inactive"
    await spend(house, "default", 1, house.clock.now_s)
    assert (await admin.projects.spend_limit.retrieve(red.id)).enforcement.status == "inactive"
    assert (await admin.spend_limit.retrieve()).enforcement.status == "enforcing"
    total = await admin.projects.spend_limit.update(red.id, **{**limit, "interval": "total"})
    assert total.enforcement.status == "enforcing"


@pytest.mark.parametrize("owner", ["organization", "project"])
async def test_spend_alerts_are_added_changed_and_removed(
    house: House, admin: AsyncOrganization, owner: str
) -> None:
    """Every call that the client has, for the organization and for a project alike."""
    alerts: Any = admin.projects.spend_alerts if owner == "project" else admin.spend_alerts
    ids = ["default"] if owner == "project" else []
    where = {"project_id": "default"} if owner == "project" else {}
    made = [
        await alerts.create(
            *ids, currency="USD", interval="month", threshold_amount=cents, notification_channel=MAIL
        )
        for cents in (100, 200, 300)
    ]
    assert made[0].object == f"{owner}.spend_alert"
    assert (made[0].threshold_amount, made[0].interval) == (100, "month")
    assert made[0].notification_channel.model_dump() == MAIL
    assert (await alerts.retrieve(made[0].id, **where)).model_dump() == made[0].model_dump()
    found = [a.id async for a in alerts.list(*ids, limit=2)]
    assert sorted(found) == sorted(a.id for a in made)
    assert [a.id async for a in alerts.list(*ids, order="desc")] == found[::-1]
    before = await alerts.list(*ids, before=found[2], limit=1)
    assert [a.id for a in before.data] == [found[1]]
    other: Any = {**MAIL, "recipients": []}
    changed = await alerts.update(
        made[0].id, **where, currency="USD", interval="month", threshold_amount=5, notification_channel=other
    )
    assert (changed.threshold_amount, changed.notification_channel.recipients) == (5, [])
    deleted = await alerts.delete(made[0].id, **where)
    assert (deleted.id, deleted.object) == (made[0].id, f"{owner}.spend_alert.deleted")
    with pytest.raises(NotFoundError):
        await alerts.retrieve(made[0].id, **where)


async def test_an_alert_can_call_a_webhook(raw: httpx.AsyncClient) -> None:
    """Instead of or besides mail; what an update does not name stays."""
    path = "organization/projects/default/spend_alerts"
    made = (await raw.post(path, json={"threshold_amount": 1, "webhook_url": "https://x.org/y"})).json()
    assert made["webhook_url"] == "https://x.org/y"
    assert made["notification_channel"] == {"type": "email", "recipients": [], "subject_prefix": None}
    one = f"{path}/{made['id']}"
    changed = (await raw.post(one, json={"threshold_amount": 2}, headers={"If-Match": "1"})).json()
    assert (changed["threshold_amount"], changed["webhook_url"]) == (2, "https://x.org/y")
    assert (await raw.post(one, json={"threshold_amount": 3, "version": 1})).status_code == 409
    assert (await raw.post(one, json={"webhook_url": None})).json()["webhook_url"] is None
    answer = await raw.post(path, json={"threshold_amount": 1, "webhook_url": "ftp://x"})
    assert answer.json()["error"]["param"] == "webhook_url"


async def test_alerts_follow_the_interval_of_the_limit(raw: httpx.AsyncClient) -> None:
    """One who thinks of another is told so."""
    path = "organization/projects/default"
    await raw.post(f"{path}/spend_limit", json={"threshold_amount": 10, "interval": "total"})
    refused = await raw.post(f"{path}/spend_alerts", json={"threshold_amount": 1, "interval": "month"})
    assert refused.json()["error"]["param"] == "interval"
    made = await raw.post(f"{path}/spend_alerts", json={"threshold_amount": 1})
    assert made.json()["interval"] == "total"
    assert (await raw.get(f"{path}/spend_alerts")).json()["data"][0]["interval"] == "total"
