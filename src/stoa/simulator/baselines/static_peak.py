"""As many replicas as the peak needs, all the time."""

from __future__ import annotations

from dataclasses import dataclass

from stoa.fleet.policies.facts import Snapshot


@dataclass(frozen=True, slots=True)
class StaticPeak:
    """A scaler with one answer. Who runs it chooses the smallest `replicas` with which the SLO holds over the whole
    trace: a clairvoyant choice, in the baseline's favour."""

    replicas: int

    def initial(self) -> None:
        return None

    def target(self, seen: Snapshot, memory: None) -> tuple[int, None]:
        return self.replicas, None
