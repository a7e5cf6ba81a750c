"""The breaker against any history of calls, late ends and clocks that jump."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from stoa.fleet.remote.breaker import Breaker, BreakerPolicy, Permit

POLICY = BreakerPolicy(window=4, threshold=2, pause_s=1.0, max_pause_s=8.0, trials=2, needed=3)
STEP = st.one_of(
    st.tuples(st.just("call"), st.floats(0, 3)),
    st.tuples(st.just("wait"), st.floats(-2, 10)),
    st.tuples(st.sampled_from(["ok", "bad", "quiet", "gone"]), st.integers(0, 10)),
)


@dataclass
class World:
    breaker: Breaker = field(default_factory=lambda: Breaker(POLICY))
    now_s: float = 0.0
    open_calls: list[Permit] = field(default_factory=list)

    def call(self) -> bool:
        self.breaker, permit = self.breaker.admit(self.now_s)
        if permit is not None:
            self.open_calls.append(permit)
        return permit is not None

    def end(self, how: str, which: int) -> None:
        if not self.open_calls:
            return
        permit = self.open_calls.pop(which % len(self.open_calls))
        self.breaker = {
            "ok": lambda: self.breaker.succeeded(permit),
            "bad": lambda: self.breaker.failing(permit, self.now_s),
            "quiet": lambda: self.breaker.throttled(permit, self.now_s, 5.0),
            "gone": lambda: self.breaker.abandoned(permit),
        }[how]()


@given(st.lists(STEP, max_size=60))
def test_promises_hold_in_any_history(steps: list[tuple[str, float]]) -> None:
    """Nothing is let in during a pause; half-open lets few in at once; pauses are bounded; it can always recover."""
    world = World()
    for what, amount in steps:
        before = world.breaker
        if what == "wait":
            world.now_s += amount
        elif what == "call":
            let_in = world.call()
            assert let_in == before.would_admit(world.now_s)
            assert not (let_in and before.wait_s(world.now_s))
        else:
            world.end(what, int(amount))
        after = world.breaker
        current = [p for p in world.open_calls if p.era == after.era]
        if after.phase == "half_open":
            assert after.trying == len(current) <= POLICY.trials
        assert after.pause_s <= POLICY.max_pause_s
        assert len(after.failed) <= POLICY.window
        assert (after.phase != before.phase) == (after.era != before.era)
    _recovers(world)


def _recovers(world: World) -> None:
    for permit in world.open_calls:
        world.breaker = world.breaker.abandoned(permit)
    world.now_s += world.breaker.wait_s(world.now_s) + 1e-6
    for _ in range(POLICY.needed):
        world.breaker, permit = world.breaker.admit(world.now_s)
        assert permit is not None
        world.breaker = world.breaker.succeeded(permit)
    assert world.breaker.phase == "closed"


def opened() -> World:
    world = World()
    for _ in range(POLICY.threshold):
        world.call()
        world.end("bad", 0)
    return world


def test_failures_among_the_last_calls_open_it() -> None:
    """Old ones are forgotten."""
    world = World()
    for how in ("bad", "ok", "ok", "ok", "ok", "bad"):
        world.call()
        world.end(how, 0)
    assert world.breaker.phase == "closed"
    world.call()
    world.end("bad", 0)
    assert (world.breaker.phase, world.call()) == ("open", False)


def test_each_trial_that_fails_doubles_the_pause() -> None:
    """Up to the longest."""
    world, pauses = opened(), []
    for _ in range(5):
        pauses.append(world.breaker.wait_s(world.now_s))
        world.now_s += pauses[-1]
        assert world.call()
        world.end("bad", 0)
    assert pauses == [1, 2, 4, 8, 8]


def test_a_crowd_that_fails_late_prolongs_nothing() -> None:
    """Ends of calls from before the breaker opened are not heard."""
    world = World()
    for _ in range(10):
        world.call()
    for _ in range(10):
        world.now_s += 0.1
        world.end("bad", 0)
    assert world.breaker.wait_s(world.now_s) < POLICY.pause_s


def test_a_wish_for_quiet_is_granted_within_bounds() -> None:
    """Also one for ever, and in any phase."""
    world = World()
    world.call()
    world.breaker = world.breaker.throttled(world.open_calls.pop(), 0.0, float("inf"))
    assert world.breaker.wait_s(0.0) == POLICY.max_quiet_s
    assert world.breaker.phase == "closed"
