"""Policies that a controller's actor can import."""

from __future__ import annotations

from stoa.fleet.policies.facts import Decision, Launch, OfferSeen, Snapshot


class Steady:
    """Keeps `min_replicas`, spread over zones, spot first; an offer that has refused or lost one rests for three seconds."""

    def initial(self) -> None:
        return None

    def decide(self, seen: Snapshot, memory: None) -> tuple[Decision, None]:
        alive = [r for r in seen.replicas if r.state != "draining"]
        missing = seen.bounds.min_replicas - len(alive)
        if missing <= 0:
            return Decision(drain=[r.id for r in alive[:-missing]] if missing else []), None

        def rank(o: OfferSeen) -> tuple[int, bool, str]:
            here = sum(r.offer.zone == o.offer.zone for r in alive)
            return here, o.offer.market != "spot", o.offer.zone

        rested = [o for o in seen.offers if seen.now_s - max(o.refused_s, o.preempted_s) > 3]
        return Decision([Launch(o.offer, 1) for o in sorted(rested, key=rank)[:missing]]), None
