"""Where replicas are to be had: cheap machines that vanish, spread over zones, and dear ones for what these can't cover.

What SpotHedge (SkyServe, EuroSys 2025) does with fixed numbers is done here by what has been learned of each zone.
    hazard      h: how often a zone takes machines back, losses / time there, fading over days, and drawn to the rate of all
                zones together: one loss anywhere makes careful everywhere, and where none happens nothing is paid
    together    how often another zone is taken back in the same moment, learned for each two, and drawn to the
                mean of all: zones of one region often are
    T           what a loss costs: a startup time until a replacement serves, and about one more to catch up
    price       of one more replica where x of n stand: hourly·(1 + h·T) + hourly·h·T·(x/n) / (1 - attainment)
                (machine time that is paid again; and all x gone at once, when a late second counts as many ordinary
                ones as there are for each that may be late)
    spare       as many replicas beyond need as bring the share of time in which a lost zone (and what goes with it) leaves
                less than the bare load, sum of h·T over such zones, below what `Need` allows: none where losses are rare
                or zones many, one zone's part where they are few
    closed      a zone that refused, or took back, is asked again after a quarter of a startup time, then twice as
                long, up to a few minutes
On-demand covers need minus what spot has ready or starting, and goes back when spot is ready. It is never spare: where no
other zone is open, late requests after a loss are made up for by a lower budget, that is by greater margins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from stoa.fleet.policies.consolidation import first_to_go, give_back
from stoa.fleet.policies.facts import Decision, Launch, Offer, OfferSeen, ReplicaSeen, Snapshot

HOUR_S = 3600.0
POOL_LOSSES, POOL_S = 0.25, 24 * HOUR_S  # believed of all offers together before anything is seen
SHARED_S = 6 * HOUR_S  # how long an offer's own time must be to count as much as the others'
FADE_S = 5 * 24 * HOUR_S
LONGEST_BACKOFF_S = 300.0
TRUST_S = HOUR_S
_NEVER = (-math.inf, -math.inf, -math.inf)


@dataclass(frozen=True, slots=True)
class Record:
    """What one offer has done so far."""

    there_s: float = 0.0  # time with a replica there, fading
    losses: float = 0.0  # times that some were taken back, fading
    refusals: int = 0  # since a launch last succeeded
    told: tuple[float, float, float] = _NEVER  # launched, refused, preempted: as last seen


@dataclass(frozen=True, slots=True)
class Together:
    """Of two zones, the first of which was taken back."""

    times: float = 0.0  # that there was something in the other
    both: float = 0.0  # of these, it went too


@dataclass(frozen=True, slots=True)
class Records:
    by_offer: Mapping[Offer, Record] = field(default_factory=dict)
    looked_s: float = -math.inf
    held: frozenset[str] = frozenset()  # zones with spot replicas then
    together: Mapping[tuple[str, str], Together] = field(
        default_factory=dict
    )  # by zone that was lost, and another

    def of(self, offer: Offer) -> Record:
        return self.by_offer.get(offer, Record())

    def hazard_per_s(self, offer: Offer) -> float:
        known, own = self.by_offer.values(), self.of(offer)
        pool = (sum(r.losses for r in known) + POOL_LOSSES) / (sum(r.there_s for r in known) + POOL_S)
        return (own.losses + pool * SHARED_S) / (own.there_s + SHARED_S)

    def goes_too(self, lost: str, other: str) -> float:
        """How likely it is that `other` is lost when `lost` is: what was seen, drawn to the mean of all."""
        known, own = self.together.values(), self.together.get((lost, other), Together())
        mean = sum(t.both for t in known) / (sum(t.times for t in known) + 2.0)
        return (own.both + mean) / (own.times + 1.0)


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas: `bare` carry the load expected, `full` keep the target through its bursts. `risk`: share of time in which
    a lost zone may leave less than bare."""

    bare: int
    full: int
    risk: float = 0.002


def learn(seen: Snapshot, known: Records) -> Records:
    """After another look at the offers."""
    passed_s = seen.now_s - known.looked_s
    passed_s = passed_s if 0 < passed_s < math.inf else 0.0
    held = {r.offer for r in seen.replicas if r.offer.market == "spot"}
    keep = math.exp(-passed_s / FADE_S)
    records: dict[Offer, Record] = {}
    for o in seen.offers:
        old = known.of(o.offer)
        told = (o.launched_s, o.refused_s, o.preempted_s)
        launched, refused, lost = (new != before for new, before in zip(told, old.told, strict=True))
        bad = refused or lost
        refusals = old.refusals + 1 if bad else 0 if launched else old.refusals
        there_s = old.there_s * keep + (passed_s if o.offer in held else 0.0)
        records[o.offer] = Record(there_s, old.losses * keep + lost, refusals, told)
    lost_now = {o.zone for o, r in records.items() if r.told[2] != known.of(o).told[2]}
    zones = frozenset(o.zone for o in held)
    return Records(records, seen.now_s, zones, _lost_together(known, lost_now))


def _lost_together(known: Records, lost: Set[str]) -> Mapping[tuple[str, str], Together]:
    if not lost:
        return known.together
    together = dict(known.together)
    for one in lost:
        for other in (known.held | lost) - {one}:
            old = together.get((one, other), Together())
            together[one, other] = Together(old.times + 1.0, old.both + (other in lost))
    return together


def is_open(o: OfferSeen, record: Record, now_s: float) -> bool:
    """Whether it is worth asking again."""
    last_s = max(o.refused_s, o.preempted_s)
    if record.refusals == 0 or last_s == -math.inf:
        return True
    backoff_s = max(1.0, o.offer.startup_s / 4) * 2.0 ** min(16, record.refusals - 1)
    return now_s >= last_s + min(LONGEST_BACKOFF_S, backoff_s)


def place(seen: Snapshot, need: Need, known: Records) -> Decision:
    """What to launch and what to drain, so that `need.full` replicas serve."""
    lasting = [r for r in seen.replicas if r.state != "draining" and r.ends_s == math.inf]
    spot = [r for r in lasting if r.offer.market == "spot"]
    dear = [r for r in lasting if r.offer.market == "on_demand"]
    plan = _Plan(seen, need, known, Counter(r.offer for r in spot))
    plan.grow()
    room = max(0, seen.bounds.max_replicas - len(lasting))
    launch = _capped(plan.added, room)
    room -= sum(x.count for x in launch)
    sure = sum(n for offer, n in plan.added.items() if plan.trusts(offer))
    ready = sum(r.state == "ready" for r in spot)
    fewest = max(0, need.full - len(spot) - sure)
    if fewest > len(dear):
        launch += plan.on_demand(min(room, fewest - len(dear)))
    drain = _leaving(need, plan, spot, dear, fewest=fewest, most=max(0, need.full - ready))
    return Decision(tuple(launch), (*drain, *ending(seen, need, lasting)))


def ending(seen: Snapshot, need: Need, lasting: Sequence[ReplicaSeen]) -> list[str]:
    """Replicas whose end is announced serve on until others are ready, or until the end is near; then their requests
    move."""
    relieved = sum(r.state == "ready" for r in lasting) >= need.full
    near_s = seen.now_s + 2 * seen.demand.bin_s
    ending = [r for r in seen.replicas if r.state != "draining" and r.ends_s < math.inf]
    return [r.id for r in ending if relieved or r.ends_s <= near_s]


class _Plan:
    """Spot replicas by offer, as they are and as they should be."""

    def __init__(self, seen: Snapshot, need: Need, known: Records, counts: Counter[Offer]) -> None:
        self._seen, self._need, self._known = seen, need, known
        self.counts = counts
        self.added: Counter[Offer] = Counter()
        self._losses: dict[Offer, float] = {}
        self._pairs: dict[tuple[str, str], float] = {}
        dear = [o for o in seen.offers if o.offer.market == "on_demand"]
        self._dear = sorted(
            (o.offer for o in dear if self._open(o)), key=lambda offer: (offer.hourly, offer.zone)
        )
        dearest = min((o.offer.hourly for o in dear), default=math.inf)
        spot = [o for o in seen.offers if o.offer.market == "spot" and self._open(o)]
        self._spot = [o.offer for o in spot if o.offer.hourly * (1 + self.loss(o.offer)) < dearest]

    def _open(self, o: OfferSeen) -> bool:
        return is_open(o, self._known.of(o.offer), self._seen.now_s)

    def loss(self, offer: Offer) -> float:
        """Share of time that its losses leave a gap."""
        if offer not in self._losses:
            self._losses[offer] = min(1.0, self._known.hazard_per_s(offer) * 2 * offer.startup_s)
        return self._losses[offer]

    def price(self, offer: Offer) -> float:
        """Of one more there."""
        late = max(1e-4, 1.0 - self._seen.slo.attainment)
        crowd = (self.counts[offer] + 1) / max(1, self._need.full)
        return offer.hourly * (1 + self.loss(offer) * (1 + crowd / late))

    def risk(self, counts: Mapping[Offer, int]) -> tuple[float, float]:
        """Share of time in which a lost zone, and what goes with it, leaves less than the bare load; and the replicas that
        are missing then, on average over all time."""
        zones: dict[str, tuple[int, float]] = {}
        for offer, n in counts.items():
            before = zones.get(offer.zone, (0, 0.0))
            zones[offer.zone] = (before[0] + n, max(before[1], self.loss(offer)))
        share = missing = 0.0
        for lost, (n, loss) in zones.items():
            left = sum(m * (1.0 - self._goes_too(lost, z)) for z, (m, _) in zones.items() if z != lost)
            if n and left < self._need.bare - 0.1:
                share += loss
                missing += loss * (self._need.bare - left)
        return share, missing

    def _goes_too(self, lost: str, other: str) -> float:
        if (lost, other) not in self._pairs:
            self._pairs[lost, other] = self._known.goes_too(lost, other)
        return self._pairs[lost, other]

    def grow(self) -> None:
        """Adds what is missing, then what losses make advisable."""
        if not self._spot or not self._need.full:
            return
        while sum(self.counts.values()) < self._need.full:
            self._add(min(self._spot, key=lambda o: (self.price(o), o.zone)))
        before, risk = (self.counts.copy(), self.added.copy()), self.risk(self.counts)[0]
        most = self._need.full + self._need.bare
        while self.risk(self.counts)[0] > self._need.risk and sum(self.counts.values()) < most:
            self._add(min(self._spot, key=lambda o: (self._risk_with(o, 1)[1], self.price(o), o.zone)))
        if self.risk(self.counts)[0] >= risk:
            self.counts, self.added = before

    def _risk_with(self, offer: Offer, more: int) -> tuple[float, float]:
        """What the risk would be with so many more there."""
        counts = self.counts.copy()
        counts[offer] += more
        return self.risk(counts)

    def _add(self, offer: Offer) -> None:
        self.counts[offer] += 1
        self.added[offer] += 1

    def trusts(self, offer: Offer) -> bool:
        """Whether a launch there may be counted on: one has succeeded lately, and nothing bad was heard since. Where not,
        on-demand is launched beside it, and goes back at the next look if it was not needed."""
        record = self._known.of(offer)
        return record.refusals == 0 and self._seen.now_s - record.told[0] < TRUST_S

    def on_demand(self, count: int) -> list[Launch]:
        return [Launch(self._dear[0], count)] if count > 0 and self._dear else []

    def surplus(self, spot: Sequence[ReplicaSeen]) -> list[ReplicaSeen]:
        """Spot replicas that neither need nor risk asks for, in the order of leaving."""
        left, leaving = list(spot), []
        while left and not self.added and sum(self.counts.values()) > self._need.full:
            offers = {r.offer for r in left}
            dearest = min(offers, key=lambda o: (self._risk_with(o, -1), -self.price(o), o.zone))
            worse = self._risk_with(dearest, -1)[0] > max(self._need.risk, self.risk(self.counts)[0])
            if self._need.full and worse:
                break
            self.counts[dearest] -= 1
            gone = first_to_go(r for r in left if r.offer == dearest)[0]
            left.remove(gone)
            leaving.append(gone)
        return leaving


def _capped(added: Counter[Offer], room: int) -> list[Launch]:
    launch = []
    for offer, n in added.items():
        n = min(n, room)
        room -= n
        if n:
            launch.append(Launch(offer, n))
    return launch


def _leaving(
    need: Need,
    plan: _Plan,
    spot: Sequence[ReplicaSeen],
    dear: Sequence[ReplicaSeen],
    *,
    fewest: int,
    most: int,
) -> list[str]:
    """On-demand replicas beyond `most` go, of starting ones those beyond `fewest`; then spot replicas. Ready ones go only
    while at least need is ready."""
    order = first_to_go(dear)
    starting = [r for r in order if r.state == "starting"]
    go = starting[: max(0, len(dear) - fewest)]
    ready = [r for r in order if r.state == "ready"]
    go += ready[: max(0, len(dear) - len(go) - most)]
    go += plan.surplus(spot)
    return give_back(go, sum(r.state == "ready" for r in (*spot, *dear)) - need.full)
