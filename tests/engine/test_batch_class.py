"""The batch class fills what interactive requests leave, and is out of their way within a step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoa.engine import Engine, GenerationRequest
from tests.engine.driving import Answer, assert_all_returned, collect, drain, make_engine, request
from tests.engine.test_engine import PAGE, prompt
from tests.engine.tiny import model_folder


def batch(id: str, tokens: list[int], **more: Any) -> GenerationRequest:
    return msgspec.structs.replace(request(id, tokens, **more), service_class="batch")


@pytest.fixture(scope="module")
def alone() -> Any:
    """What each prompt is answered with in an engine of its own."""
    engine = make_engine(model_folder("llama"))
    cache: dict[tuple[int, int, int], list[int]] = {}

    def ask(seed: int, length: int, count: int) -> list[int]:
        key = (seed, length, count)
        if key not in cache:
            asked = request("r", prompt(seed, length), max_tokens=count)
            cache[key] = drain(engine, [asked])["r", 0].tokens
        return cache[key]

    return ask


sizes = st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 15))  # seed, prompt, output
loads = st.fixed_dictionaries(
    {
        "pages": st.integers(6, 30),
        "chunk": st.sampled_from([4, 16, 64, 256]),
        "seats": st.integers(1, 5),
        "prefix": st.booleans(),
        "fairness": st.sampled_from(["cost", "off"]),
        "batch": st.lists(sizes, min_size=1, max_size=14),
        "arrivals": st.lists(st.tuples(st.integers(0, 25), sizes), min_size=1, max_size=4),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(loads)
def test_an_interactive_arrival_runs_in_the_next_step(alone: Any, plan: dict[str, Any]) -> None:
    """Whatever batch runs, with all places taken and all pages held: it has rows in the very next step, unless others
    of its class are before it. Afterwards everybody has the answer of an engine of its own, and all pages are back."""
    engine = make_engine(
        model_folder("llama"),
        pool_bytes=plan["pages"] * PAGE,
        max_batch_tokens=plan["chunk"],
        max_num_seqs=plan["seats"],
        max_model_len=80,
        prefix_caching=plan["prefix"],
        fairness=plan["fairness"],
    )
    asked = {f"b{i}": size for i, size in enumerate(plan["batch"])}
    for id_, (seed, length, count) in asked.items():
        engine.add_request(batch(id_, prompt(seed, length), max_tokens=count, project="night"))
    arrivals = sorted(plan["arrivals"])
    answers: dict[tuple[str, int], Answer] = {}
    step = 0
    while engine.has_requests or arrivals:
        new: list[str] = []
        busy = any(s.priority[0] == 0 for s in (*engine.scheduler.running, *engine.scheduler.waiting))
        while arrivals and arrivals[0][0] <= step and not busy and not new:
            _, size = arrivals.pop(0)
            new.append(f"i{len(arrivals)}")
            asked[new[0]] = size
            engine.add_request(request(new[0], prompt(*size[:2]), max_tokens=size[2], project="day"))
        live = [s for id_ in new for s in engine._live[id_]]
        collect(engine.step(), answers)
        assert all(s.num_computed or s.done for s in live), "an interactive request waits for a batch"
        held = engine.pool.num_pages - engine.pool.num_free
        assert engine.blocks.num_held + engine.blocks.num_cached == held
        step += 1
        assert step < 3000, "no progress"
    for id_, size in asked.items():
        assert answers[id_, 0].tokens == alone(*size)
    assert_all_returned(engine)


def rows_of(engine: Engine) -> dict[str, int]:
    """The rows of the next step, by request; they are computed."""
    seen: dict[str, int] = {}
    before = {s: s.num_computed for s in (*engine.scheduler.running, *engine.scheduler.waiting)}
    engine.step()
    for seq, computed in before.items():
        if seq.num_computed > computed:
            seen[seq.request.id] = seq.num_computed - computed
    return seen


class Steady:
    """Steps that take a second, and a tenth for each row."""

    def observe(self, work: float, seconds: float) -> None:
        pass

    def fit(self) -> tuple[float, float]:
        return 1.0, 0.1


def steady_engine(**more: Any) -> Engine:
    engine = make_engine(model_folder("llama"), speculation=False, prefix_caching=False, **more)
    engine.scheduler.times = Steady()  # type: ignore[assignment]
    return engine


def test_batches_fill_the_step_of_an_idle_engine() -> None:
    """Without interactive requests nothing keeps a step short."""
    engine = steady_engine(max_batch_tokens=200)
    for i in range(5):
        engine.add_request(batch(f"{i}", prompt(i, 50), max_tokens=3))
    assert sum(rows_of(engine).values()) == 200


def test_beside_interactive_requests_the_step_stays_short() -> None:
    """And for a while after the last of them, since the next may come; the rows that are left are the batch's."""
    engine = steady_engine(max_batch_tokens=200)
    now = [0.0]
    engine.scheduler.shares.clock = lambda: now[0]
    engine.add_request(request("i", prompt(9, 5), max_tokens=2))
    for i in range(6):
        engine.add_request(batch(f"{i}", prompt(i, 50), max_tokens=20))
    first = rows_of(engine)
    assert first.pop("i") == 5
    assert 1 <= sum(first.values()) <= 20
    while "i" in engine._live:
        engine.step()
    assert 1 <= sum(rows_of(engine).values()) <= 20
    now[0] = 11.0
    assert sum(rows_of(engine).values()) > 100


def test_a_batch_costs_its_project_no_interactive_share() -> None:
    """Counters belong to a class: whoever fills idle time is not behind others afterwards."""
    engine = make_engine(model_folder("llama"))
    drain(engine, [batch(f"{i}", prompt(i, 40), project="night", max_tokens=10) for i in range(8)])
    scheduler = engine.scheduler
    engine.add_request(request("day", prompt(1, 20), project="day"))
    engine.add_request(request("night", prompt(2, 20), project="night"))
    assert scheduler.shares.served("night") == scheduler.shares.served("day")
    assert scheduler.shares_of(scheduler.waiting[0]).over() == frozenset()


def test_projects_share_within_the_batch_class() -> None:
    """A late batch of another project does not wait for the end of an early long one."""
    engine = make_engine(model_folder("llama"), max_num_seqs=2)
    for i in range(20):
        engine.add_request(batch(f"early{i}", prompt(i, 20), project="a", max_tokens=5))
    for _ in range(3):
        engine.step()
    for i in range(2):
        engine.add_request(batch(f"late{i}", prompt(i, 20), project="b", max_tokens=5))
    ended: list[str] = []
    while not {"late0", "late1"} <= set(ended):
        ended += [e.request_id for e in engine.step() if e.finish_reason]
    assert len(ended) <= 10
