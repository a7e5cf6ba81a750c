"""May a remote be asked now? A circuit breaker as a pure state machine; times come from the caller's clock.

    closed ──failures of the last `window` calls reach `threshold`──▶ open
    open ──pause over──▶ half-open: `trials` calls at a time
    half-open ──`needed` trials succeed──▶ closed          a trial fails ──▶ open, the pause doubled

A call is let in with a permit, and its end is told once with the same permit. Ends of calls that began before the
breaker last changed change nothing: a crowd of calls failing late cannot prolong a pause again and again.
A remote that asks to be left alone (429 with Retry-After) is, in any state; that is no failure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Phase = Literal["closed", "open", "half_open"]


@dataclass(frozen=True)
class BreakerPolicy:
    window: int = 10  # calls remembered
    threshold: int = 5  # failures among them that open it
    pause_s: float = 2.0  # the first one; doubles with each trial that fails
    max_pause_s: float = 30.0
    max_quiet_s: float = 600.0  # however long a remote asks for
    trials: int = 1  # calls at once while half-open
    needed: int = 2  # of these must succeed


@dataclass(frozen=True)
class Permit:
    era: int


@dataclass(frozen=True)
class Breaker:
    """The state. All methods return the next one; `now_s` may go backwards, which only makes pauses longer."""

    policy: BreakerPolicy = BreakerPolicy()
    phase: Phase = "closed"
    era: int = 0  # counts changes of phase
    failed: tuple[bool, ...] = ()  # of the last calls, oldest first
    opened_s: float = 0.0
    pause_s: float = 0.0
    quiet_until_s: float = float("-inf")
    trying: int = 0  # trials under way
    passed: int = 0  # trials that have succeeded

    def wait_s(self, now_s: float) -> float:
        """How long until a call may be let in; 0: now, unless all trials are under way."""
        open_s = self.opened_s + self.pause_s - now_s if self.phase == "open" else 0.0
        return max(0.0, open_s, self.quiet_until_s - now_s)

    def would_admit(self, now_s: float) -> bool:
        busy = self.phase == "half_open" and self.trying >= self.policy.trials
        return self.wait_s(now_s) == 0 and not busy

    def admit(self, now_s: float) -> tuple[Breaker, Permit | None]:
        """None: not now."""
        if not self.would_admit(now_s):
            return self, None
        state = self
        if state.phase == "open":
            state = replace(state, phase="half_open", era=state.era + 1, trying=0, passed=0)
        if state.phase == "half_open":
            state = replace(state, trying=state.trying + 1)
        return state, Permit(state.era)

    def succeeded(self, permit: Permit) -> Breaker:
        if permit.era != self.era:
            return self
        if self.phase == "closed":
            return replace(self, failed=self._with(False))
        passed = self.passed + 1
        if passed >= self.policy.needed:
            return replace(self, phase="closed", era=self.era + 1, failed=(), pause_s=0.0, trying=0, passed=0)
        return replace(self, trying=self.trying - 1, passed=passed)

    def failing(self, permit: Permit, now_s: float) -> Breaker:
        """The call failed in a way that is the remote's fault."""
        if permit.era != self.era:
            return self
        failed = self._with(True)
        if self.phase == "closed" and sum(failed) < self.policy.threshold:
            return replace(self, failed=failed)
        doubled = min(max(2 * self.pause_s, self.policy.pause_s), self.policy.max_pause_s)
        return replace(
            self, phase="open", era=self.era + 1, failed=(), opened_s=now_s, pause_s=doubled, trying=0, passed=0
        )  # fmt: skip

    def throttled(self, permit: Permit, now_s: float, retry_after_s: float) -> Breaker:
        """The remote answers, but takes no more for so long."""
        quiet = now_s + min(max(retry_after_s, 0.0), self.policy.max_quiet_s)
        return replace(self.abandoned(permit), quiet_until_s=max(self.quiet_until_s, quiet))

    def abandoned(self, permit: Permit) -> Breaker:
        """The call ended without saying anything of the remote: cancelled, or refused for its own faults."""
        if permit.era != self.era or self.phase != "half_open":
            return self
        return replace(self, trying=self.trying - 1)

    def _with(self, failed: bool) -> tuple[bool, ...]:
        return (*self.failed, failed)[-self.policy.window :]
