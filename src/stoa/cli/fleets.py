"""Puts a fleet together for `stoa serve`: one engine, several on this machine, or those of a cluster."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from stoa.config import Settings
from stoa.economics.node import Node
from stoa.engine.config import EngineConfig, step_rows
from stoa.engine.model.config import read_model_config
from stoa.errors import ConfigError
from stoa.fleet.fleet import Fleet
from stoa.fleet.local import LocalReplica
from stoa.fleet.membership import Membership, NearControls
from stoa.fleet.policies.profile import Profile
from stoa.fleet.policies.router import Costs
from stoa.fleet.worker import DEFAULT_FACTORY

if TYPE_CHECKING:
    from stoa.fleet.cluster.controls import RayControls
    from stoa.fleet.cluster.plan import OfferPlan, Plan
    from stoa.fleet.policies.modelplan import ModelPlan

_GIB = 1 << 30
_LOAD_S, _ADAPTER_LOAD_S = 10.0, 0.05  # until a profile says better
_PATIENCE_S = 10.0  # before it is said what is waited for


class ServedFleet(Protocol):
    """Implemented by `OneEngine` and `ElasticFleet`."""

    @property
    def fleet(self) -> Fleet: ...

    async def start(self) -> None:
        """Until requests can be taken. Raises why they never will."""
        ...

    async def begun(self) -> None:
        """Until starting leaves the processor to others."""
        ...

    def follow(self, plan: ModelPlan) -> None:
        """From now on."""
        ...

    async def stop(self, drain_s: float) -> None: ...


@dataclass
class OneEngine:
    """An engine that starts and ends with the gateway."""

    fleet: Fleet
    replica: LocalReplica

    async def start(self) -> None:
        await self.replica.start()

    async def begun(self) -> None:
        await self.replica.spawned.wait()

    def follow(self, plan: ModelPlan) -> None:
        self.fleet.follow(plan)

    async def stop(self, drain_s: float) -> None:
        await self.fleet.stop(drain_s)


@dataclass
class ElasticFleet:
    """A fleet whose replicas come and go as a controller says."""

    fleet: Fleet
    membership: Membership
    min_replicas: int
    ray: RayControls | None  # None: the controller is in this process
    patience_s: float = _PATIENCE_S

    async def start(self) -> None:
        """Raises ClusterUnreachable. If replicas are always there, waits for the first, and raises why none can start."""
        if self.ray is not None:
            await self.ray.connect()
        self.membership.start()
        tell_s = time.monotonic() + self.patience_s
        while self.min_replicas and not any(m.load.taking for m in self.fleet.members.values()):
            if self.fleet.hopeless is not None:
                raise self.fleet.hopeless
            if time.monotonic() > tell_s:
                why = "it starts" if self.fleet.starting else self.fleet.refusals or "no machine has come yet"
                print(f"waiting for the first replica: {why}", file=sys.stderr)
                tell_s = math.inf
            await asyncio.sleep(0.02)

    async def begun(self) -> None: ...

    def follow(self, plan: ModelPlan) -> None:
        self.fleet.follow(plan)
        self.membership.follow(plan)

    async def stop(self, drain_s: float) -> None:
        await self.membership.hold_still()
        await self.fleet.stop(drain_s)
        await self.membership.close()


def open_fleet(settings: Settings, model_id: str, engine: EngineConfig) -> ServedFleet:
    """Raises ConfigError."""
    factory = os.environ.get("STOA_ENGINE_FACTORY", DEFAULT_FACTORY)  # another engine, for measurements
    _check(settings)
    if settings.cluster == "local" and (settings.min_replicas, settings.max_replicas) == (1, 1):
        fleet = Fleet(
            max_queue=settings.max_queue, hold_s=settings.hold_s, ttft_s=settings.slo_ttft_ms / 1000
        )
        replica = LocalReplica(engine, node=Node(zone=settings.zone), factory=factory)
        fleet.add(replica, slots=settings.max_num_seqs)
        return OneEngine(fleet, replica)
    longest = settings.max_model_len or read_model_config(Path(engine.model)).max_position
    return _open_elastic(settings, model_id, engine, longest, factory)


def _check(settings: Settings) -> None:
    """Also what this fleet does not use: a mistake is told before it matters. Raises ConfigError."""
    read_profile(settings)
    _offers(settings)
    _resources(settings)
    _pairs("replica_labels", settings)


def _open_elastic(
    settings: Settings, model_id: str, engine: EngineConfig, max_model_len: int, factory: str
) -> ElasticFleet:
    if settings.min_replicas > settings.max_replicas:
        raise ConfigError(
            f"min_replicas {settings.min_replicas} is above max_replicas {settings.max_replicas}",
            param="max_replicas",
        )
    profile = read_profile(settings)
    fleet = Fleet(
        max_queue=settings.max_queue,
        hold_s=settings.hold_s,
        ttft_s=settings.slo_ttft_ms / 1000,
        costs=Costs.of(profile),
        max_model_len=max_model_len,
    )
    fleet.holds = True
    ray: RayControls | None = None
    controls: NearControls | RayControls
    if settings.cluster == "local":
        controls = _near(settings, engine, profile, factory)
    else:
        from stoa.fleet.cluster.controls import RayControls

        ray = controls = RayControls(settings.cluster, plan(settings, model_id, engine, profile, factory))
    membership = Membership(
        fleet,
        controls,
        gateway=f"{settings.node or socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
        slots=settings.max_num_seqs,
        machine=settings.machine,
    )
    return ElasticFleet(fleet, membership, settings.min_replicas, ray)


def _near(settings: Settings, engine: EngineConfig, profile: Profile, factory: str) -> NearControls:
    from stoa.fleet.backends.local import LocalBackend
    from stoa.fleet.controller import Controller
    from stoa.fleet.policies.autoscaler import Elastic
    from stoa.fleet.policies.facts import Bounds, Offer, Slo

    if not engine.threads:  # all engines together have the machine
        share = max(1, len(os.sched_getaffinity(0)) // settings.max_replicas)
        engine = msgspec.structs.replace(engine, threads=share)
    offer = Offer(settings.zone, "on_demand", 1.0, profile.load_s)
    return NearControls(
        Controller(
            backend=LocalBackend(
                engine,
                offer=offer,
                most=settings.max_replicas + 1,
                factory=factory,
                node=settings.node,
                spare=settings.min_replicas == 0,
            ),
            policy=Elastic(),
            profile=profile,
            slo=Slo(settings.slo_ttft_ms / 1000),
            bounds=Bounds(settings.min_replicas, settings.max_replicas, settings.idle_s),
            clock=time.monotonic,
        )
    )


def plan(settings: Settings, model_id: str, engine: EngineConfig, profile: Profile, factory: str) -> Plan:
    """Gateways with the same model and engine share one fleet; others have one of their own."""
    from stoa.fleet.cluster.plan import Plan

    if not engine.threads and settings.replica_cpus >= 1:
        engine = msgspec.structs.replace(engine, threads=int(settings.replica_cpus))
    kind = hashlib.blake2b(msgspec.msgpack.encode((engine, factory)), digest_size=4).hexdigest()
    return Plan(
        name=f"{model_id.replace('/', '--')}-{kind}",
        engine=engine,
        profile=profile,
        factory=factory,
        cpus=settings.replica_cpus,
        gpus=settings.replica_gpus,
        memory_bytes=int(settings.replica_memory_gib * _GIB),
        resources=_resources(settings),
        labels=dict(_pairs("replica_labels", settings)),
        offers=_offers(settings),
        provision_s=settings.provision_s,
        ttft_s=settings.slo_ttft_ms / 1000,
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        idle_s=settings.idle_s,
    )


def read_profile(settings: Settings) -> Profile:
    """Of one replica; without a measured one a guess, with which scaling is only coarse."""
    if not settings.profile:
        return Profile(
            name="guess",
            fixed_s=0.02,
            prompt_row_s=2e-4,
            decode_row_s=5e-4,
            max_num_seqs=settings.max_num_seqs,
            max_batch_tokens=step_rows(settings.device, settings.max_batch_tokens),
            load_s=_LOAD_S,
            adapter_load_s=_ADAPTER_LOAD_S,
        )
    try:
        return msgspec.json.decode(Path(settings.profile).read_bytes(), type=Profile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"profile {settings.profile} cannot be read: {error}; make one with stoa bench profile",
            param="profile",
        ) from None


def _resources(settings: Settings) -> dict[str, float]:
    return {
        name: _number("replica_resources", amount) for name, amount in _pairs("replica_resources", settings)
    }


def _offers(settings: Settings) -> list[OfferPlan]:
    from stoa.fleet.cluster.plan import OfferPlan

    offers = []
    for place, price in _pairs("offers", settings):
        zone, _, market = place.rpartition("/")
        if market == "spot":
            offers.append(OfferPlan(zone, "spot", _number("offers", price)))
        elif market == "on_demand":
            offers.append(OfferPlan(zone, "on_demand", _number("offers", price)))
        else:
            raise ConfigError(f"offers: {place!r} is no ZONE/spot or ZONE/on_demand", param="offers")
    return offers


def _pairs(name: str, settings: Settings) -> list[tuple[str, str]]:
    """Of text like "a=1,b=2"."""
    pairs = []
    for part in filter(None, (p.strip() for p in str(getattr(settings, name)).split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"{name}: {part!r} is no NAME=VALUE", param=name)
        pairs.append((key.strip(), value.strip()))
    return pairs


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(f"{name}: {text!r} is no number of at least 0", param=name)
    return number
