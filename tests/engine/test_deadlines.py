"""Of a project's waiting requests, those whose first token can still be in time go first."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from stoa.engine import Engine, GenerationRequest
from stoa.engine.cost import StepTime
from tests.engine.driving import make_engine, request
from tests.engine.test_engine import prompt
from tests.engine.tiny import model_folder


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Steady(StepTime):
    """Steps take 10 ms, whatever the machine does."""

    def fit(self) -> tuple[float, float]:
        return 0.01, 0.0


def one_seat(clock: Clock, *, ttft_target_ms: float = 1000.0, fairness: str = "cost") -> Engine:
    engine = make_engine(
        model_folder("llama"), max_num_seqs=1, ttft_target_ms=ttft_target_ms, fairness=fairness, threads=1
    )
    engine.scheduler.shares.clock = clock
    engine.scheduler.times = Steady()
    return engine


def waited(name: str, seconds: float, **more: object) -> GenerationRequest:
    asked = request(name, prompt(1, 5), max_tokens=2)
    return msgspec.structs.replace(asked, waited_s=seconds, **more)


def order(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str]:
    """In which they have their first tokens."""
    for one in requests:
        engine.add_request(one)
    came: list[str] = []
    while engine.has_requests:
        came += [e.request_id for e in engine.step() if e.token_ids and e.request_id not in came]
    return came


@pytest.mark.parametrize("fairness", ["cost", "off"])
def test_late_ones_come_after_those_in_time(fairness: str) -> None:
    """Each by arrival."""
    engine = one_seat(Clock(), fairness=fairness)
    asked = [waited("late", 5.0), waited("later", 1.5), waited("due", 0.8), waited("new", 0.0)]
    assert order(engine, asked) == ["due", "new", "late", "later"]


def test_what_becomes_late_while_it_waits_gives_way() -> None:
    """To one that has come after it."""
    clock = Clock()
    engine = one_seat(clock)
    engine.add_request(waited("old", 0.0))
    clock.now_s += 2.0
    assert order(engine, [waited("new", 0.0)]) == ["new", "old"]


def test_nobody_is_set_aside_for_long() -> None:
    """After two minutes one of four that are admitted has waited so long."""
    engine = one_seat(Clock())
    asked = [waited("old1", 122.0), waited("old2", 121.0), waited("late", 5.0)]
    asked += [waited(f"new{i}", 0.0) for i in range(7)]
    came = ["new0", "new1", "new2", "old1", "new3", "new4", "new5", "old2", "new6", "late"]
    assert order(engine, asked) == came


def test_an_answer_under_way_is_not_late() -> None:
    """What has been begun elsewhere goes before what is new, however long ago it came."""
    engine = one_seat(Clock())
    begun = waited("begun", 30.0, so_far=[[3]], params=request("x", [1], max_tokens=3, seed=1).params)
    assert order(engine, [waited("new", 0.0), begun]) == ["begun", "new"]


def test_projects_keep_their_turns() -> None:
    """A project whose requests are late is not behind another's that are in time."""
    engine = one_seat(Clock(), fairness="tokens")
    asked = [waited(f"a{i}", 5.0, project="a") for i in range(3)]
    asked += [waited(f"b{i}", 0.0, project="b") for i in range(3)]
    came = order(engine, asked)
    assert came[0] == "a0"
    assert {"a1", "b1"} <= {*came[:4]}


def test_without_a_target_requests_come_by_arrival() -> None:
    """And batches do in any case."""
    asked = [waited("late", 5.0), waited("new", 0.0)]
    assert order(one_seat(Clock(), ttft_target_ms=0.0), asked) == ["late", "new"]
    batches = [msgspec.structs.replace(one, service_class="batch") for one in asked]
    assert order(one_seat(Clock()), batches) == ["late", "new"]
