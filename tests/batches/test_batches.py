"""Batches on both databases: every line has one result, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import func, select

from stoa.batches import Answer, Asked
from stoa.batches.batch import Batch
from stoa.batches.lease import LeaseLost, Leases
from stoa.batches.tables import ResultRow
from stoa.engine.stats import EngineStats
from stoa.errors import Conflict, InvalidRequest, NotFound, StorageFull
from stoa.storage.objects import StorageUnavailable
from stoa.storage.scope import EVERY_PROJECT
from stoa.tenancy.office import open_office
from stoa.tenancy.principal import Principal
from tests.batches.fakes import (
    ENDPOINT,
    WHO,
    BrokenObjects,
    FakeSender,
    MortalDatabase,
    Workshop,
    echo,
    line,
    lines,
    refusal,
)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in found]


async def lasting(workshop: Workshop, for_s: float) -> None:
    """Until so much has passed on the clock."""
    until_s = workshop.clock() + for_s
    while workshop.clock() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def results_left(workshop: Workshop) -> int:
    async with workshop.database.read(EVERY_PROJECT) as session:
        return int(await session.scalar(select(func.count()).select_from(ResultRow)) or 0)


class TestRunning:
    async def test_every_line_has_its_answer(self, workshop: Workshop) -> None:
        """In the order of the input, in OpenAI's form; counted, and nothing is left behind."""
        batch = await workshop.create(lines(30), metadata={"a": "b"})
        assert (batch.status, batch.total) == ("validating", 0)
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert (done.total, done.completed, done.failed) == (30, 30, 0)
        assert (done.input_tokens, done.cached_tokens, done.output_tokens) == (90, 30, 60)
        assert (done.model, done.error_file_id, done.metadata) == ("m", None, {"a": "b"})
        assert list(done.times) == ["in_progress", "finalizing", "completed"]
        found = await workshop.output(done.output_file_id)
        assert ids(found) == [f"r{n}" for n in range(30)]
        for each in found:
            assert each["id"].startswith("batch_req_")
            assert each["error"] is None
            assert each["response"]["status_code"] == 200
            assert each["response"]["request_id"].startswith("req_")
            assert each["response"]["body"]["said"] == each["custom_id"]
        assert workshop.sender.said == Counter(ids(found))
        assert {a.service_class for a in workshop.sender.asked} == {"batch"}
        assert {a.principal.project_id for a in workshop.sender.asked} == {"default"}
        assert await results_left(workshop) == 0

    async def test_what_fails_is_in_a_file_of_its_own(self, workshop: Workshop) -> None:
        """A spent budget too: each of its lines says so."""

        def answer(asked: Asked) -> Answer:
            if b'"r1"' in asked.body:
                return refusal(400, "invalid_value")
            return refusal(429, "insufficient_quota") if b'"r2"' in asked.body else echo(asked)

        workshop.sender.answer = answer
        batch = await workshop.create(lines(4))
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert (done.completed, done.failed) == (2, 2)
        assert ids(await workshop.output(done.output_file_id)) == ["r0", "r3"]
        bad = await workshop.output(done.error_file_id)
        assert ids(bad) == ["r1", "r2"]
        assert [b["response"]["body"]["error"]["code"] for b in bad] == [
            "invalid_value",
            "insufficient_quota",
        ]
        assert workshop.sender.said["r2"] == 1

    async def test_a_batch_without_any_success_has_no_output(self, workshop: Workshop) -> None:
        """Only errors."""
        workshop.sender.answer = lambda asked: refusal(404, "model_not_found")
        batch = await workshop.create(lines(3))
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert done.output_file_id is None
        assert len(await workshop.output(done.error_file_id)) == 3

    async def test_a_bad_file_runs_nothing(self, workshop: Workshop) -> None:
        """Each bad line is told."""
        batch = await workshop.create(line("a") + b"\nnonsense\n" + line("a"))
        async with workshop.gateway():
            done = await workshop.until("failed", batch)
        assert [(e.line, e.code) for e in done.errors] == [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
        ]
        assert (done.total, done.output_file_id, workshop.sender.asked) == (0, None, [])

    @pytest.mark.parametrize("model", ["", "m" * 600, "a\0b", "a\nb"])
    async def test_a_model_that_cannot_be_fails_the_batch(self, workshop: Workshop, model: str) -> None:
        """With the line's number; nothing is tried again and again."""
        batch = await workshop.create(line("a") + b"\n" + line("b", body={"model": model}))
        async with workshop.gateway():
            done = await workshop.until("failed", batch)
        assert [(e.line, e.code, e.param) for e in done.errors] == [(2, "invalid_request", "body.model")]

    async def test_odd_texts_are_carried_through(self, workshop: Workshop) -> None:
        """What has room in JSON has room in every database."""
        batch = await workshop.create(line("a\0\u2028"), metadata={"k": "v\0"})
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert ids(await workshop.output(done.output_file_id)) == ["a\0\u2028"]
        assert done.metadata == {"k": "v\0"}

    async def test_a_fault_of_ours_fails_the_batch(self, workshop: Workshop) -> None:
        """While its file is looked at: it does not stay there for ever."""
        workshop.objects = BrokenObjects(workshop.objects, ZeroDivisionError())
        batch = await workshop.create(lines(3))
        async with workshop.gateway():
            done = await workshop.until("failed", batch)
        assert [(e.line, e.code) for e in done.errors] == [(None, "server_error")]

    async def test_a_store_that_stays_away_fails_the_batch(self, workshop: Workshop) -> None:
        """At the end of its window, and not before: it could have come back."""
        workshop.objects = BrokenObjects(workshop.objects, StorageUnavailable("away"))
        batch = await workshop.create(lines(3), completion_window="1h")
        async with workshop.gateway():
            await workshop.eventually(lambda _: workshop.clock() > batch.created_at + 3000, batch, pass_s=60)
            assert (await workshop.batches.get("default", batch.id)).status == "validating"
            done = await workshop.until("failed", batch, pass_s=60)
        assert done.times["failed"] >= batch.expires_at
        assert [e.code for e in done.errors] == ["server_error"]
        assert "away" in done.errors[0].message

    async def test_outputs_expire_when_asked_to(self, workshop: Workshop) -> None:
        """Counted from when they were written."""
        batch = await workshop.create(lines(1), output_expires_after_s=3600)
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        file = await workshop.files.get("default", str(done.output_file_id))
        assert file.expires_at == file.created_at + 3600


class TestWaiting:
    async def test_limits_of_the_project_are_waited_for(self, workshop: Workshop) -> None:
        """No line fails for them, and they are not asked again and again."""
        began = workshop.clock()
        refused: list[float] = []

        def answer(asked: Asked) -> Answer:
            if workshop.clock() < began + 60:
                refused.append(workshop.clock())
                return refusal(429, "rate_limit_exceeded", 20.0)
            return echo(asked)

        workshop.sender.answer = answer
        batch = await workshop.create(lines(20))
        async with workshop.gateway():
            done = await workshop.until("completed", batch, pass_s=1.0)
        assert (done.completed, done.failed) == (20, 0)
        assert len(refused) <= 40

    @pytest.mark.parametrize("status", [500, 503])
    async def test_a_broken_engine_is_waited_for(self, workshop: Workshop, status: int) -> None:
        """503 as long as it takes, others three times."""
        seen: Counter[bytes] = Counter()

        def answer(asked: Asked) -> Answer:
            seen[asked.body] += 1
            broken = seen[asked.body] <= 3 and b'"r1"' in asked.body
            return refusal(status, "broken") if broken else echo(asked)

        workshop.sender.answer = answer
        batch = await workshop.create(lines(4))
        async with workshop.gateway():
            done = await workshop.until("completed", batch, pass_s=1.0)
        assert (done.completed, done.failed) == ((4, 0) if status == 503 else (3, 1))
        assert workshop.sender.said["r0"] == 1

    async def test_a_full_queue_makes_room_for_others(self, workshop: Workshop) -> None:
        """The gateway sends less at once."""
        full = [True] * 8

        def answer(asked: Asked) -> Answer:
            return refusal(429, "queue_full", 1.0) if full and full.pop() else echo(asked)

        workshop.sender.answer = answer
        workshop.stats = EngineStats(running=8, waiting=1)
        batch = await workshop.create(lines(20))
        async with workshop.gateway() as runner:
            await workshop.until("completed", batch, pass_s=0.5)
            assert runner.throttle.limit < 8

    async def test_a_revoked_key_asks_for_nothing_more(self, workshop: Workshop) -> None:
        """What is left of its batches fails as its requests would."""
        office = open_office(workshop.database, clock=workshop.clock)
        new = await office.keys.create("default", "default", actor="cli", name="k")
        who = Principal("default", "default", new.key.id, frozenset({"all"}))
        workshop.stats = EngineStats(running=8, waiting=1)
        held: list[Asked] = []
        workshop.sender.answer = lambda asked: held.append(asked)  # type: ignore[func-returns-value]
        batch = await workshop.create(lines(10), who)
        async with workshop.gateway() as runner:
            runner.throttle.limit = 3
            await workshop.eventually(lambda _: len(held) == 3, batch)
            assert {a.principal.key_id for a in held} == {new.key.id}
            await office.keys.revoke("default", "default", new.key.id, actor="cli")
        workshop.clock.pass_s(10)
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert (done.completed, done.failed) == (0, 10)
        bad = await workshop.output(done.error_file_id)
        assert {b["response"]["status_code"] for b in bad} == {401}


class TestUrgency:
    async def test_a_late_batch_becomes_interactive(self, workshop: Workshop) -> None:
        """As soon as it falls behind, and again and again until it is through; what was sent to fill idle time, and
        got none, is sent again at last."""
        workshop.sender.answer = lambda asked: echo(asked) if asked.service_class == "interactive" else None
        batch = await workshop.create(lines(40), completion_window="1h")
        workshop.stats = EngineStats(running=8, waiting=1)
        async with workshop.gateway() as runner:
            runner.throttle.limit = 1
            await workshop.eventually(lambda _: bool(workshop.sender.asked), batch, pass_s=0)
            assert [a.service_class for a in workshop.sender.asked] == ["batch"]
            workshop.clock.pass_s(0.7 * 3600)
            await workshop.eventually(lambda b: b.completed >= 18, batch, pass_s=0)
            done = await workshop.until("completed", batch, pass_s=5)
        assert done.times["completed"] < batch.created_at + 0.95 * 3600
        assert workshop.sender.asked[1].service_class == "interactive"
        interactive = [a for a in workshop.sender.asked if a.service_class == "interactive"]
        assert len(interactive) == 40

    async def test_urgent_batches_leave_room_for_others(self, workshop: Workshop) -> None:
        """However many there are: a quarter of the gateway's queue, soon in equal parts for their projects."""
        workshop.max_queue = 64
        workshop.stats = EngineStats(running=8, waiting=8)
        workshop.sender.meanwhile = lambda: lasting(workshop, 60.0)
        office = open_office(workshop.database, clock=workshop.clock)
        projects = [(await office.projects.create("default", actor="cli", name=name)).id for name in "ab"]
        many, few = (Principal("default", project, None, frozenset({"all"})) for project in projects)
        made = [await workshop.create(lines(400), many, completion_window="6h") for _ in range(6)]
        made.append(await workshop.create(lines(400), few, completion_window="6h"))
        workshop.clock.pass_s(0.88 * 6 * 3600)
        async with workshop.gateway():
            await workshop.eventually(lambda b: b.completed >= 20, made[-1], pass_s=5)
            assert 16 <= workshop.sender.most_running <= 16 + 8
            recent = Counter(a.principal.project_id for a in workshop.sender.asked[-32:])
            assert recent[projects[1]] >= 12
            assert {a.service_class for a in workshop.sender.asked} == {"interactive"}

    async def test_an_urgent_batch_has_as_many_at_once_as_it_takes(self, workshop: Workshop) -> None:
        """Alone it is in time, though the engine has no idle time at all."""
        workshop.stats = EngineStats(running=8, waiting=8)
        workshop.sender.meanwhile = lambda: lasting(workshop, 60.0)
        batch = await workshop.create(lines(200), completion_window="1h")
        workshop.clock.pass_s(0.6 * 3600)
        async with workshop.gateway() as runner:
            runner.throttle.limit = 1
            done = await workshop.until("completed", batch, pass_s=10)
        assert done.completed == 200
        assert workshop.sender.most_running > 8

    async def test_a_window_is_kept(self, workshop: Workshop) -> None:
        """At its end the batch expires with what was done; the rest is told by id."""
        workshop.sender.answer = lambda asked: echo(asked) if b'"r1' in asked.body else None
        batch = await workshop.create(lines(20), completion_window="1h")
        async with workshop.gateway():
            await workshop.eventually(lambda b: b.completed > 0, batch)
            done = await workshop.until("expired", batch, pass_s=60)
        assert done.expires_at == batch.created_at + 3600
        assert (done.total, done.completed + done.failed) == (20, 20)
        good, bad = await workshop.output(done.output_file_id), await workshop.output(done.error_file_id)
        assert sorted(ids(good) + ids(bad)) == sorted(f"r{n}" for n in range(20))
        assert ids(good) == ["r1", *[f"r{n}" for n in range(10, 20)]]
        assert {b["error"]["code"] for b in bad} == {"batch_expired"}
        assert {b["response"] for b in bad} == {None}
        assert workshop.sender.running == 0

    async def test_one_that_nobody_could_work_at_expires_too(self, workshop: Workshop) -> None:
        """No gateway was up in its window."""
        batch = await workshop.create(lines(5))
        workshop.clock.pass_s(2 * 86400)
        async with workshop.gateway():
            done = await workshop.until("expired", batch)
        assert workshop.sender.asked == []
        assert ids(await workshop.output(done.error_file_id)) == [f"r{n}" for n in range(5)]


class TestCancelling:
    async def test_it_stops_at_once(self, workshop: Workshop) -> None:
        """What was done is kept, what ran is given up, the rest is told by id."""
        workshop.sender.answer = lambda asked: echo(asked) if b'"r0"' in asked.body else None
        batch = await workshop.create(lines(20))
        async with workshop.gateway():
            await workshop.eventually(lambda b: b.completed == 1, batch)
            asked = await workshop.batches.cancel("default", batch.id)
            assert asked.status == "cancelling"
            assert (await workshop.batches.cancel("default", batch.id)).status == "cancelling"
            done = await workshop.until("cancelled", batch)
        assert workshop.sender.running == 0
        assert ids(await workshop.output(done.output_file_id)) == ["r0"]
        bad = await workshop.output(done.error_file_id)
        assert ids(bad) == [f"r{n}" for n in range(1, 20)]
        assert {b["error"]["code"] for b in bad} == {"batch_cancelled"}
        with pytest.raises(Conflict):
            await workshop.batches.cancel("default", batch.id)

    async def test_before_anybody_looked_at_it(self, workshop: Workshop) -> None:
        """Then there is nothing to tell."""
        batch = await workshop.create(lines(20))
        await workshop.batches.cancel("default", batch.id)
        async with workshop.gateway():
            done = await workshop.until("cancelled", batch)
        assert (done.total, done.output_file_id, done.error_file_id) == (0, None, None)
        assert workshop.sender.asked == []

    async def test_an_input_that_is_deleted_ends_it(self, workshop: Workshop) -> None:
        """It fails, and keeps what was done."""
        workshop.sender.answer = lambda asked: echo(asked) if b'"r0"' in asked.body else None
        batch = await workshop.create(lines(9))
        async with workshop.gateway():
            await workshop.eventually(lambda b: b.completed == 1, batch)
        await workshop.files.delete("default", batch.input_file_id)
        workshop.sender.answer = echo
        async with workshop.gateway():
            done = await workshop.until("failed", batch)
        assert [e.code for e in done.errors] == ["input_file_gone"]
        assert (done.completed, done.failed) == (1, 8)
        assert ids(await workshop.output(done.output_file_id)) == ["r0"]


class TestDying:
    @pytest.mark.parametrize("transactions", [*range(1, 16), 18, 22, 27, 35])
    async def test_whatever_a_dead_gateway_has_begun_is_ended_by_another(
        self, workshop: Workshop, transactions: int
    ) -> None:
        """After any of its transactions: every line has one result, no line has two."""
        workshop.sender.answer = lambda asked: refusal(400, "invalid") if b'3"' in asked.body else echo(asked)
        batch = await workshop.create(lines(40))
        mortal = MortalDatabase(workshop.url)
        mortal.left = transactions
        async with workshop.gateway(mortal) as runner:
            runner.throttle.limit = 2
            await workshop.eventually(lambda b: mortal.dead or b.status == "completed", batch, pass_s=0)
        await mortal.close()
        workshop.clock.pass_s(31)
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        assert (done.total, done.completed, done.failed) == (40, 36, 4)
        good, bad = await workshop.output(done.output_file_id), await workshop.output(done.error_file_id)
        assert ids(bad) == ["r3", "r13", "r23", "r33"]
        assert ids(good) == [f"r{n}" for n in range(40) if n % 10 != 3]
        assert await results_left(workshop) == 0
        everything, _ = await workshop.files.list("default")
        assert len(everything) == 3

    async def test_a_stopped_gateway_leaves_its_batch_at_once(self, workshop: Workshop) -> None:
        """With what it has done written down: nothing of it is done again."""
        answers = iter(range(10))
        workshop.sender.answer = lambda asked: None if next(answers, None) is None else echo(asked)
        batch = await workshop.create(lines(20))
        async with workshop.gateway():
            await workshop.eventually(lambda b: b.completed == 10, batch)
        assert workshop.sender.running == 0
        other = FakeSender()
        async with workshop.gateway(sender=other):
            await workshop.until("completed", batch, pass_s=0)
        assert sum(other.said.values()) == 10

    async def test_who_was_taken_for_dead_writes_nothing_more(self, workshop: Workshop) -> None:
        """Its lease has another term by now."""
        await workshop.create(lines(3))
        first, second = (Leases(workshop.database, workshop.clock) for _ in range(2))
        (old,) = await first.claim(9)
        assert await second.claim(9) == []
        workshop.clock.pass_s(31)
        (new,) = await second.claim(9)
        assert (new.batch_id, new.term) == (old.batch_id, old.term + 1)
        for act in (first.renew, first.look, first.release):
            with pytest.raises(LeaseLost):
                await act(old)
        await second.renew(new)

    async def test_gateways_share_the_work(self, workshop: Workshop) -> None:
        """Each batch is one's alone: every line is sent once."""
        made = [await workshop.create(lines(10)) for _ in range(6)]
        senders = FakeSender(), FakeSender()
        async with workshop.gateway(sender=senders[0]), workshop.gateway(sender=senders[1]):
            for batch in made:
                await workshop.until("completed", batch, pass_s=0)
        said = senders[0].said + senders[1].said
        assert said == Counter({f"r{n}": 6 for n in range(10)})

    async def test_results_wait_for_a_lost_database(self, workshop: Workshop) -> None:
        """And are written once when it is back."""
        batch = await workshop.create(lines(30))
        mortal = MortalDatabase(workshop.url)
        async with workshop.gateway(mortal) as runner:
            runner.throttle.limit = 1
            await workshop.eventually(lambda b: b.completed > 3, batch, pass_s=0)
            mortal.left = 0
            await asyncio.sleep(0.2)
            mortal.left = None
            done = await workshop.until("completed", batch)
        await mortal.close()
        assert ids(await workshop.output(done.output_file_id)) == [f"r{n}" for n in range(30)]


class TestAsking:
    async def test_what_cannot_be_is_refused(self, workshop: Workshop) -> None:
        """With the field that is wrong."""
        file = await workshop.upload(b"x")
        notes = await workshop.upload(b"x", "user_data")
        good = {"endpoint": ENDPOINT, "input_file_id": file.id, "completion_window": "24h"}
        bad: list[tuple[dict[str, Any], str]] = [
            ({"endpoint": "/v1/models"}, "endpoint"),
            ({"endpoint": "/v1/responses"}, "endpoint"),
            ({"input_file_id": notes.id}, "input_file_id"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"completion_window": "8d"}, "completion_window"),
            ({"completion_window": "0h"}, "completion_window"),
            ({"metadata": {"k": "v" * 513}}, "metadata"),
            ({"metadata": {f"{n}": "" for n in range(17)}}, "metadata"),
        ]
        who = Principal("default", "default", None, frozenset({"all"}))
        for change, param in bad:
            with pytest.raises(InvalidRequest) as refused:
                await workshop.batches.create(who, **(good | change))
            assert refused.value.param == param
        for file_id in ("file-x", "", "a\0b", "\u202e", "x" * 5000):
            with pytest.raises(NotFound) as unknown:
                await workshop.batches.create(who, **(good | {"input_file_id": file_id}))
            assert unknown.value.param == "input_file_id"
        other = Principal("default", "other", None, frozenset({"all"}))
        with pytest.raises(NotFound):
            await workshop.batches.create(other, **good)
        for window, seconds in (("24h", 86400), ("30m", 1800), ("7d", 7 * 86400)):
            made: Batch = await workshop.batches.create(who, **(good | {"completion_window": window}))
            assert made.expires_at == made.created_at + seconds

    async def test_a_full_project_begins_nothing(self, workshop: Workshop) -> None:
        """What batches have written counts, though it is always written; once there is room again they begin."""
        batch = await workshop.create(lines(3))
        workshop.max_stored_bytes = 500
        assert sum(file.size_bytes for file in (await workshop.files.list("default"))[0]) < 500
        async with workshop.gateway():
            done = await workshop.until("completed", batch)
        asked = {"endpoint": ENDPOINT, "input_file_id": batch.input_file_id, "completion_window": "24h"}
        with pytest.raises(StorageFull):
            await workshop.batches.create(WHO, **asked)
        await workshop.files.delete("default", str(done.output_file_id))
        await workshop.batches.create(WHO, **asked)
