"""What gateways and the controller of a fleet tell each other, about once a second.

A report counts from the gateway's start, so that one that is lost or comes twice changes nothing.
"""

from __future__ import annotations

import msgspec

from stoa import errors
from stoa.errors import EngineUnavailable, StoaError
from stoa.fleet.policies.contract import FleetPlan
from stoa.fleet.policies.facts import Market, Offer, ReplicaState


class ClusterUnreachable(EngineUnavailable):
    """Who decides about replicas, or who runs them, does not answer; the message says where it was looked for."""

    code = "cluster_unreachable"


class ReplicaUse(msgspec.Struct, frozen=True):
    """What one gateway has to do with one replica."""

    running: int = 0  # requests sent to it that have not ended
    waiting: int = 0  # of these, without a first token
    progress: int = 0  # changes while its engine looks for work, also while it is idle
    connected: bool = True


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sums are since the gateway's start."""

    gateway: str  # a name of this process and no other
    epoch: str = ""  # of the last state it has carried out
    version: int = 0
    requests: int = 0  # arrived
    prompt_tokens: int = 0  # of these, those found in prefix caches not counted
    output_tokens: int = 0  # generated
    late: int = 0  # whose first token came, or was still missing, after the target
    in_flight: int = 0  # now, queued or running
    held: int = 0  # of these, those that no replica has taken yet
    oldest_wait_s: float = 0.0  # of those without a first token
    replicas: dict[str, ReplicaUse] = {}
    confined: dict[
        str, int
    ] = {}  # of in_flight, those that a plan confines to places, by `modelplan.confined_key`
    plan: PlanNews | None = None  # while the controller has an older one, or none


class PlanNews(msgspec.Struct, frozen=True, kw_only=True):
    """What `ModelPlan.of` is made of."""

    file: FleetPlan
    model: str
    machine: str
    read_s: float


class Trouble(msgspec.Struct, frozen=True):
    """A StoaError on its way to another process."""

    kind: str  # class in stoa.errors
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: StoaError) -> Trouble:
        return cls(type(error).__name__, error.message, error.param)

    def error(self) -> StoaError:
        """EngineUnavailable if this process does not know the class."""
        known = getattr(errors, self.kind, None)
        if not (isinstance(known, type) and issubclass(known, StoaError)):
            known = EngineUnavailable
        try:
            return known(self.message, param=self.param)
        except TypeError:  # wants facts that do not travel
            return EngineUnavailable(self.message)

    @property
    def lasting(self) -> bool:
        """The engine itself has refused, as the next one will: the model or a setting is wrong."""
        return not isinstance(self.error(), EngineUnavailable)


class ReplicaPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replica is and what may be expected of it."""

    id: str
    state: ReplicaState  # draining: gets nothing new if others are there; what it runs should move
    zone: str
    market: Market
    address: str = ""  # HOST:PORT of its engine process; "" while it starts
    token: str = ""  # to show there
    node: str = ""  # the machine
    ends_in_s: float | None = None  # it will be gone then


class FleetState(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas there are. Who is not listed is gone."""

    epoch: str  # changes with the controller's process; versions of one epoch can be compared
    version: int
    known: bool  # false: the controller has not seen its replicas yet; `replicas` says nothing
    replicas: list[ReplicaPlace] = []
    trouble: Trouble | None = None  # why no replica can start; held requests may end with it
    refusals: list[str] = []  # why machines that were asked for lately have not come
    plan_s: float = 0.0  # `read_s` of the plan that it follows; 0: none


def place_of(replica_id: str, offer: Offer, state: ReplicaState) -> ReplicaPlace:
    return ReplicaPlace(id=replica_id, state=state, zone=offer.zone, market=offer.market)
