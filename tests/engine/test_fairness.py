"""Projects get their shares: the counters' arithmetic, and the engine that follows them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoa.engine import Engine
from stoa.engine.fairness import FairShares
from tests.engine.driving import make_engine, request
from tests.engine.tiny import model_folder


@dataclass(frozen=True)
class Item:
    project: str
    priority: tuple[int, int, int]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def waiting(shares: FairShares, *projects: str) -> list[Item]:
    items = [Item(p, (0, i, 0)) for i, p in enumerate(projects)]
    for item in items:
        shares.arrive(item.project, 1.0)
        shares.wait(item.project)
    return items


def test_the_least_served_comes_next() -> None:
    """Ten requests of one project do not stand before the first of another."""
    shares = FairShares()
    items = waiting(shares, *"aaaabb")
    order = [i.project for i in shares.order(items, lambda item: 1.0)]
    assert order == list("ababaa")


def test_weights_divide_what_is_counted() -> None:
    """A project of weight 3 gets three turns for one."""
    shares = FairShares()
    items = waiting(shares, *"aaaabbbb")
    shares.arrive("b", 3.0)
    order = "".join(i.project for i in shares.order(items, lambda item: 1.0))
    assert order[:5] == "abbba"


def test_class_goes_before_fairness() -> None:
    """Batch requests wait for interactive ones, whoever's they are."""
    shares = FairShares()
    for project in "ab":
        shares.arrive(project, 1.0)
        shares.wait(project)
    shares.charge("b", 100.0)
    items = [Item("b", (0, 5, 0)), Item("a", (1, 1, 0))]
    assert [i.project for i in shares.order(items, lambda item: 1.0)] == ["b", "a"]


def test_idle_time_earns_no_credit() -> None:
    """A project that comes back starts level with those that wait."""
    shares = FairShares()
    waiting(shares, "a", "b")
    shares.admitted("b")
    shares.leave("b")
    shares.charge("a", 1000.0)
    shares.arrive("b", 1.0)
    shares.wait("b")
    assert shares.served("b") == shares.served("a") == 1000.0


def test_off_is_first_come_first_served() -> None:
    """Without fairness nothing but priority counts."""
    shares = FairShares(enabled=False)
    items = waiting(shares, *"aaab")
    assert list(shares.order(items, lambda item: 1.0)) == items
    assert shares.over() == frozenset()


def test_a_project_is_over_only_beside_a_light_one() -> None:
    """Alone it may have everything; beside another, clearly more than half is too much, unless that one has had
    more waiting than is served for a while; later it is forgotten."""
    clock = Clock()
    shares = FairShares(clock=clock)
    waiting(shares, "flood")
    shares.charge("flood", 90.0)
    assert shares.over() == frozenset()
    waiting(shares, "steady")
    shares.charge("steady", 30.0)
    assert shares.over() == {"flood"}
    clock.now = 3.0
    assert shares.over() == frozenset()
    shares.admitted("steady")
    assert shares.over() == {"flood"}
    shares.wait("steady")
    assert shares.over() == {"flood"}
    shares.charge("steady", 60.0)
    assert shares.over() == frozenset()
    shares.charge("flood", 90.0)
    shares.admitted("steady")
    shares.leave("steady")
    assert shares.over() == {"flood"}
    clock.now = 60.0
    assert shares.over() == frozenset()


def backlogged(engine: Engine) -> set[str]:
    return {s.project for s in engine.scheduler.waiting}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 40), st.integers(1, 12)), min_size=16, max_size=40
    ),
    st.integers(2, 6),
)
def test_waiting_projects_stay_within_the_bound(asked: list[tuple[str, int, int]], seats: int) -> None:
    """Counted in tokens, two projects that both wait never differ by more than VTC's bound: twice the larger of
    the longest prompt and what the running sequences can hold."""
    engine = make_engine(
        model_folder("llama"), max_num_seqs=seats, max_batch_tokens=32, fairness="tokens", speculation=False
    )
    for i, (project, length, count) in enumerate(asked):
        engine.add_request(request(f"{i}", [3 + i] * length, project=project, max_tokens=count))
    longest = max(length for _, length, _ in asked)
    most = 2 * seats * max(length + 2 * count for _, length, count in asked)  # of two groups of seats
    shares = engine.scheduler.shares
    while engine.has_requests:
        both = backlogged(engine) == {"a", "b"}
        engine.step()
        if both and backlogged(engine) == {"a", "b"}:
            assert abs(shares.served("a") - shares.served("b")) <= 2 * max(longest, most)


@pytest.mark.parametrize("fairness", ["cost", "tokens"])
def test_a_flood_does_not_stand_before_a_late_comer(fairness: str) -> None:
    """With forty requests of one project queued, another's single one is among the next that begin."""
    engine = make_engine(model_folder("llama"), max_num_seqs=4, fairness=fairness)
    for i in range(40):
        engine.add_request(request(f"f{i}", [5 + i] * 20, project="flood", max_tokens=20))
    for _ in range(5):
        engine.step()
    engine.add_request(request("s", [9] * 20, project="steady", max_tokens=3))
    ended: list[str] = []
    while "s" not in ended:
        ended += [e.request_id for e in engine.step() if e.finish_reason]
    assert len(ended) <= 6


def test_shares_do_not_change_tokens() -> None:
    """Pausing, preempting and reordering change when tokens come, never which."""
    answers = []
    for fairness in ("off", "cost"):
        engine = make_engine(model_folder("llama"), max_num_seqs=3, pool_bytes=1 << 18, fairness=fairness)
        got: dict[str, list[int]] = {}
        for i in range(18):
            asked = request(f"{i}", [3 + i] * (5 + i), project="ab"[i % 6 == 0], max_tokens=12)
            if i % 5 == 0:
                asked = msgspec.structs.replace(asked, service_class="batch")
            engine.add_request(asked)
        while engine.has_requests:
            for event in engine.step():
                got.setdefault(event.request_id, []).extend(event.token_ids)
        answers.append(got)
    assert answers[0] == answers[1]
