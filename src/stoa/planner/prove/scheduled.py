"""The autoscaler that does what a plan says, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stoa.fleet.policies.consolidation import first_to_go
from stoa.fleet.policies.facts import Decision, Launch, Snapshot
from stoa.planner.files.replay import Replay
from stoa.programs import Places


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`counts` by zone: machines in each period. They are launched so that they are ready when their period begins, and
    drained when it has ended."""

    replay: Replay
    counts: Mapping[str, Places]

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        there = Counter(r.offer.zone for r in seen.replicas if r.state != "draining")
        launch, drain = [], []
        for known in seen.offers:
            offer = known.offer
            ahead_s = seen.now_s + offer.startup_s + seen.demand.bin_s
            now, soon = self.replay.period_at(np.array([seen.now_s, ahead_s]))
            wanted = int(max(self.counts[offer.zone][now], self.counts[offer.zone][soon]))
            if wanted > there[offer.zone]:
                launch.append(Launch(offer, wanted - there[offer.zone]))
            mine = [r for r in seen.replicas if r.state != "draining" and r.offer.zone == offer.zone]
            drain += [r.id for r in first_to_go(mine)[: max(0, len(mine) - wanted)]]
        return Decision(tuple(launch), tuple(drain)), None
