"""What is decided without looking anywhere: pace, throttle, turns, and what an answer means."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoa.batches.lease import choose
from stoa.batches.pace import DONE_BY, IDLE_UNTIL, Progress, pace
from stoa.batches.sender import Again, Answer, again
from stoa.batches.throttle import Place, Throttle, next_limit, urgent_limit
from stoa.engine.stats import EngineStats
from tests.batches.fakes import refusal


def progress(todo: int, at: float, latency_s: float = 1.0) -> Progress:
    """Of a hundred lines and a thousand seconds; `at`: which part of them has passed."""
    return Progress(100, todo, 5000.0, 6000.0, 5000.0 + 1000 * at, latency_s)


class TestPace:
    def test_a_batch_has_half_of_its_window_for_idle_time(self) -> None:
        """Whatever is left of it."""
        assert pace(progress(100, 0.0)).service_class == "batch"
        assert pace(progress(100, IDLE_UNTIL)).service_class == "batch"

    def test_then_it_must_keep_up(self) -> None:
        """What is left of its lines may be no larger than what is left of the time to be done by."""
        assert pace(progress(100, 0.6)).service_class == "interactive"
        assert pace(progress(76, 0.6)).service_class == "interactive"
        assert pace(progress(74, 0.6)).service_class == "batch"
        assert pace(progress(1, DONE_BY)).service_class == "interactive"

    def test_as_many_at_once_as_it_takes(self) -> None:
        """Little's law: lines left, times what one takes, over the time left."""
        assert pace(progress(90, 0.6, latency_s=10.0)).least == 3
        assert pace(progress(90, 0.85, latency_s=10.0)).least == 18
        assert pace(progress(90, 0.95, latency_s=10.0)).least == 18
        assert pace(progress(90, 1.0)).least == 90

    @given(st.integers(0, 100), st.floats(0, 1.5), st.floats(0, 1.5), st.floats(0, 1000))
    def test_it_never_grows_less_urgent_by_waiting(
        self, todo: int, a: float, b: float, latency: float
    ) -> None:
        """With the same lines left, later is at least as urgent as earlier."""
        early, late = (pace(progress(todo, at, latency)) for at in sorted((a, b)))
        assert (early.service_class, late.service_class) != ("interactive", "batch")
        assert 0 <= late.least <= max(todo, 1)
        if todo == 0:
            assert late.service_class == "batch"


def stats(running: int, waiting: int) -> EngineStats:
    return EngineStats(running=running, waiting=waiting)


async def turns() -> None:
    """Of the event loop, for all that can be given away."""
    for _ in range(100):
        await asyncio.sleep(0)


class TestThrottle:
    def test_it_grows_while_nothing_waits_and_all_is_used(self) -> None:
        """And not otherwise, nor over its end."""
        assert next_limit(8, 8, stats(8, 0), 0.0) == 12
        assert next_limit(8, 3, stats(8, 0), 0.0) == 8
        assert next_limit(8, 8, stats(8, 1), 0.0) == 8
        assert next_limit(8, 8, stats(8, 0), 0.004) == 8
        assert next_limit(250, 250, stats(64, 0), 0.0) == 256

    def test_it_shrinks_while_much_waits(self) -> None:
        """In the engine, or for the gateway's own loop; down to one."""
        assert next_limit(100, 100, stats(64, 30), 0.0) == 75
        assert next_limit(100, 100, stats(64, 0), 0.1) == 75
        assert next_limit(1, 1, stats(0, 30), 0.1) == 1

    @given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1)), max_size=50))
    def test_it_stays_within_its_bounds(self, seen: list[tuple[int, int, float]]) -> None:
        """One at least, so that no batch stands still for ever."""
        limit = 8
        for running, waiting, late_s in seen:
            limit = next_limit(limit, limit, stats(running, waiting), late_s)
            assert 1 <= limit <= 256

    async def test_places_are_given_in_turn(self) -> None:
        """Who waits longest comes first; who is urgent does not wait; who gives up takes no place."""
        throttle, order = Throttle(limit=1), []

        async def work(name: str) -> None:
            place = await throttle.enter("p")
            order.append(name)
            await asyncio.sleep(0)
            throttle.leave(place)

        first = await throttle.enter("p")
        tasks = [asyncio.ensure_future(work(name)) for name in "abc"]
        await asyncio.sleep(0)
        urgent = await throttle.enter("p", urgent=True)
        assert throttle.in_flight == 2
        tasks[1].cancel()
        throttle.leave(first)
        throttle.leave(urgent)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c"]
        assert throttle.in_flight == 0

    async def test_a_place_that_is_given_to_nobody_comes_back(self) -> None:
        """Cancelled in the very moment."""
        throttle = Throttle(limit=1)
        first = await throttle.enter("p")
        task = asyncio.ensure_future(throttle.enter("p"))
        await asyncio.sleep(0)
        throttle.leave(first)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert throttle.in_flight == 0

    async def test_a_full_queue_halves_it(self) -> None:
        """Of what was in flight, not of what might have been."""
        throttle = Throttle(limit=100)
        for _ in range(10):
            await throttle.enter("p")
        throttle.back_off()
        assert throttle.limit == 5

    @pytest.mark.parametrize("urgent", [False, True])
    async def test_projects_have_the_same_number_of_places(self, urgent: bool) -> None:
        """However many batches of one were there first, it gives way as its requests end."""
        throttle = Throttle(limit=8, max_queue=32)
        first = [await throttle.enter("a", urgent=urgent) for _ in range(8)]
        wanted = [asyncio.ensure_future(throttle.enter(p, urgent=urgent)) for p in "aaaaaaaabbbb"]
        await turns()
        for place in first[:6]:
            throttle.leave(place)
        await turns()
        given = [task.result() for task in wanted if task.done()]
        assert Counter(place.project_id for place in given) == {"b": 4, "a": 2}
        for place in (*first[6:], *given):
            throttle.leave(place)
        await asyncio.gather(*wanted)
        assert throttle.in_flight == 6

    async def test_urgent_ones_leave_room_for_others(self) -> None:
        """A quarter of the queue for all of them together; less while others fill it."""
        others = 0
        throttle = Throttle(max_queue=64, in_flight_of_all=lambda: others + throttle.in_flight)
        wanted = [asyncio.ensure_future(throttle.enter("a", urgent=True)) for _ in range(40)]
        await turns()
        assert throttle.in_flight == 16
        others = 40
        for _ in range(10):
            throttle.leave(Place("a", True))
        await turns()
        assert throttle.in_flight == 8
        others = 0
        throttle.observe(EngineStats(), 0.0)
        await turns()
        assert throttle.in_flight == 16
        for task in wanted:
            task.cancel()
        await asyncio.gather(*wanted, return_exceptions=True)

    @given(st.integers(1, 5000), st.integers(0, 6000))
    def test_no_queue_is_filled_by_urgent_ones(self, max_queue: int, others: int) -> None:
        """At most a quarter of it, a sixteenth if others have most of it; always one."""
        limit = urgent_limit(max_queue, others)
        assert 1 <= limit <= max(1, max_queue // 4)
        assert limit <= max(1, max_queue // 16, max_queue - others - max_queue // 4)
        assert limit >= max_queue // 16


@pytest.mark.parametrize(
    ("answer", "tries", "expected"),
    [
        (Answer(200, b"{}"), 0, None),
        (refusal(400, "invalid"), 0, None),
        (refusal(413, "request_too_large"), 0, None),
        (refusal(429, "rate_limit_exceeded", 7.0), 50, Again(7.0, "project")),
        (refusal(429, "insufficient_quota"), 0, None),
        (refusal(429, "queue_full", 1.0), 0, Again(1.0, "engine")),
        (refusal(503, "engine_unavailable", 1.0), 3, Again(8.0, "engine")),
        (refusal(503, "engine_unavailable", 1.0), 99, Again(30.0, "engine")),
        (Answer(500, b"oops"), 0, Again(1.0, "engine")),
        (Answer(500, b"oops"), 2, None),
        (Answer(429, b"oops"), 0, Again(1.0, "project")),
    ],
)
def test_what_an_answer_means(answer: Answer, tries: int, expected: Again | None) -> None:
    """What will pass is waited for; a spent budget and what is wrong with the request are results."""
    assert again(answer, tries) == expected


def test_projects_take_turns() -> None:
    """A pile of batches does not stand before the one of another; within a project the most urgent comes first."""
    pile = [(f"a{n}", "a") for n in range(5)] + [("b0", "b")]
    assert choose(pile, {}, 3) == ["a0", "b0", "a1"]
    assert choose(pile, {"a": 2}, 2) == ["b0", "a0"]
    assert choose(pile, {}, 0) == []
    assert sorted(choose(pile, {}, 99)) == sorted(b for b, _ in pile)
