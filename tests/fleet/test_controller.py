"""The controller of a fleet keeps replicas as the policy wants them, whatever happens to them or to it."""

from __future__ import annotations

from typing import Any

import pytest

from stoa.errors import InvalidModel
from stoa.fleet.controller import Controller, Pace
from stoa.fleet.history import History
from stoa.fleet.policies.facts import Bounds, Decision, Offer, Slo, Snapshot
from stoa.fleet.policies.profile import Profile
from stoa.fleet.reports import FleetState, GatewayReport, ReplicaUse, Trouble
from tests.fleet.fake_backend import ON_DEMAND, SPOT, FakeBackend, Orders

PROFILE = Profile(name="p", fixed_s=0.01, prompt_row_s=1e-4, decode_row_s=1e-4)
PACE = Pace(settle_s=5.0, provision_s=120.0, start_s=300.0, stall_s=30.0, drain_s=60.0)


class World:
    """A controller, its backend, its policy, and a clock that tests move."""

    def __init__(
        self, *, wanted: int = 0, backend: FakeBackend | None = None, name: str = "c", **options: Any
    ):
        self.now_s = 1000.0
        self.backend = backend or FakeBackend()
        self.policy = Orders(wanted)
        self.names = iter(f"{name}{i}" for i in range(10_000))
        self.controller = Controller(
            backend=self.backend,
            policy=options.pop("policy", self.policy),
            profile=PROFILE,
            slo=Slo(2.0),
            bounds=options.pop("bounds", Bounds()),
            clock=lambda: self.now_s,
            pace=options.pop("pace", PACE),
            new_id=lambda: next(self.names),
        )

    async def tick(self, seconds: float = 0.0) -> None:
        """Time passes second by second, each with a tick."""
        for _ in range(int(seconds)):
            self.now_s += 1
            await self.controller.tick()
        if not seconds:
            await self.controller.tick()

    async def up(self, count: int = 1) -> list[str]:
        """`count` replicas that are ready, after the controller has settled."""
        self.policy.wanted = count
        await self.tick()
        ids = list(self.backend.replicas)
        for replica_id in ids:
            self.backend.ready(replica_id)
        await self.tick(PACE.settle_s + 1)
        return ids

    @property
    def phases(self) -> dict[str, str]:
        return {life.id: life.phase for life in self.controller.lives.values()}

    def state(self) -> FleetState:
        return self.controller.state()


class Gateway:
    """Reports what tests put into it."""

    def __init__(self, world: World, name: str = "g") -> None:
        self.world, self.name = world, name
        self.facts: dict[str, Any] = {}
        self.uses: dict[str, ReplicaUse] = {}
        self.heard: FleetState | None = None

    def report(self, **facts: Any) -> FleetState:
        self.facts |= facts
        seen = {"epoch": self.heard.epoch, "version": self.heard.version} if self.heard else {}
        report = GatewayReport(gateway=self.name, replicas=dict(self.uses), **seen, **self.facts)
        self.heard = self.world.controller.report(report)
        return self.heard

    async def live(self, seconds: int, *, working: bool = True) -> None:
        """Reports every second while time passes; replicas it uses make progress, or do not."""
        for _ in range(seconds):
            if working:
                self.uses = {
                    i: ReplicaUse(u.running, u.waiting, u.progress + 1, u.connected)
                    for i, u in self.uses.items()
                }
            self.report()
            await self.world.tick(1)


# -- a replica's life


async def test_a_replica_goes_from_launch_to_ready() -> None:
    """Gateways hear of it at once, and get its address when it is ready."""
    world = World(wanted=1)
    assert not world.state().known
    await world.tick()
    assert world.phases == {"c1": "pending"}
    world.backend.start("c1")
    await world.tick(1)
    assert [p.state for p in world.state().replicas] == ["starting"]
    world.backend.ready("c1")
    await world.tick(1)
    place = world.state().replicas[0]
    assert (place.state, place.address, place.token, place.market) == ("ready", "c1:1", "t", "spot")


async def test_a_refusal_is_remembered_for_the_policy() -> None:
    """The offer has its last refusal; nothing else is left of the launch."""
    world = World(wanted=2)
    world.backend.full.add(SPOT)
    await world.tick(1)
    await world.tick(1)
    seen = {s.offer: s for s in world.policy.seen[-1].offers}
    assert seen[SPOT].refused_s == world.policy.seen[-2].now_s
    assert seen[ON_DEMAND].refused_s < 0
    assert not world.controller.lives


async def test_a_machine_that_never_comes_is_a_refusal() -> None:
    """Patience ends after provision_s, and the policy hears of it."""
    world = World(wanted=1)
    await world.tick()
    await world.tick(PACE.provision_s + 1)
    assert "c1" in world.backend.stopped
    assert world.policy.seen[-1].offers[0].refused_s > 0


async def test_why_no_machine_came_is_told() -> None:
    """By offer, until one comes there or it was long ago: refused, or waited for in vain."""
    world = World(wanted=1)
    world.backend.full.add(SPOT)
    await world.tick(1)
    assert world.state().refusals == ["a (spot): sold out"]
    world.backend.full.clear()
    await world.tick(PACE.provision_s + 3)
    assert world.state().refusals == ["a (spot): no machine came within 120 s"]
    world.backend.ready(*world.backend.replicas)
    await world.tick(1)
    assert world.state().refusals == []
    world.backend.full.add(ON_DEMAND)
    world.policy.wanted, world.policy.offer = 2, ON_DEMAND
    await world.tick(1)
    assert world.state().refusals == ["b (on_demand): sold out"]
    world.policy.wanted = 1
    await world.tick(700)
    assert world.state().refusals == []


async def test_that_no_machine_is_large_enough_is_told() -> None:
    """Though the policy, which has no offer then, asks for none; the loop goes on."""
    world = World(wanted=1)
    world.backend.too_small = True
    await world.tick(1)
    assert world.policy.seen[-1].offers == []
    assert world.state().refusals == ["no machine is large enough"]
    world.backend.too_small = False
    await world.tick(1)
    assert world.state().refusals == []


async def test_a_launch_that_succeeds_is_remembered() -> None:
    """Once it has a machine, not before."""
    world = World(wanted=1)
    await world.tick(2)
    assert world.policy.seen[-1].offers[0].launched_s < 0
    world.backend.start("c1")
    await world.tick(1)
    assert world.policy.seen[-1].offers[0].launched_s == world.policy.seen[-1].now_s


async def test_no_more_than_the_bound_is_launched() -> None:
    """Whatever the policy says."""
    world = World(wanted=9, bounds=Bounds(max_replicas=3))
    await world.tick(3)
    assert len(world.backend.replicas) == 3


async def test_a_held_request_wakes_the_loop_when_there_is_nothing() -> None:
    """Its replica is not launched a tick later."""
    world = World()
    Gateway(world).report(requests=1, in_flight=1, held=1)
    assert world.controller._wake.is_set()


async def test_what_wants_to_start_is_stopped_at_once_when_drained() -> None:
    """There is nothing to move."""
    world = World()
    world.policy.wanted = 1
    await world.tick(PACE.settle_s + 1)
    world.policy.wanted, world.policy.drain = 0, ["c1"]
    await world.tick(1)
    assert not world.backend.replicas
    assert not world.controller.lives


# -- draining


async def test_a_drained_replica_ends_when_every_gateway_has_moved() -> None:
    """Not before each has heard of it and runs nothing there."""
    world = World()
    (replica,) = await world.up()
    a, b = Gateway(world, "a"), Gateway(world, "b")
    a.uses = {replica: ReplicaUse(running=2, progress=1)}
    a.report(), b.report()
    world.policy.wanted, world.policy.drain = 0, [replica]
    await world.tick(1)
    b.report()  # has not heard yet
    await world.tick()
    assert world.phases == {replica: "draining"}
    a.report(), b.report()
    await world.tick()
    assert world.phases == {replica: "draining"}
    a.uses = {replica: ReplicaUse(progress=2)}
    a.report()
    await world.tick()
    assert world.backend.stopped == [replica]
    assert not a.report().replicas


async def test_grace_ends_a_drain() -> None:
    """A gateway that cannot move its requests holds a replica no longer than drain_s."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    gateway.report()
    world.policy.wanted, world.policy.drain = 0, [replica]
    await gateway.live(int(PACE.drain_s) - 1)
    assert replica in world.phases
    await gateway.live(3)
    assert world.backend.stopped == [replica]


async def test_a_gateway_that_is_gone_holds_nothing_up() -> None:
    """It is forgotten after gateway_s; its requests went with it."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    gateway.report(in_flight=1)
    world.policy.wanted, world.policy.drain = 0, [replica]
    await world.tick(PACE.gateway_s - 1)
    assert world.phases == {replica: "draining"}
    await world.tick(3)
    assert not world.controller.gateways
    assert world.backend.stopped == [replica]


# -- machines that go away


async def test_a_notice_drains_and_tells_when_it_ends() -> None:
    """Gateways learn how long they have; the policy sees the end, and remembers the preemption."""
    world = World()
    replica, _ = await world.up(2)
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    gateway.report()
    world.backend.notice(replica, 30.0)
    await world.tick(1)
    place = next(p for p in gateway.report().replicas if p.id == replica)
    assert place.state == "draining"
    assert place.ends_in_s == 30.0
    await world.tick(1)
    seen = world.policy.seen[-1]
    assert seen.offers[0].preempted_s > 0
    assert next(r for r in seen.replicas if r.id == replica).ends_s == pytest.approx(seen.now_s + 29)
    assert len(seen.replicas) == 3  # another one has been launched


async def test_a_replica_that_vanishes_is_replaced() -> None:
    """Gone from one look to the next: a preemption if it was spot."""
    world = World()
    (replica,) = await world.up()
    world.backend.kill(replica)
    await world.tick(1)
    assert list(world.phases.values()) == ["pending"]
    assert replica not in world.phases
    assert world.policy.seen[-1].offers[0].preempted_s > 0


# -- failures at start


async def test_a_model_that_cannot_be_loaded_is_told() -> None:
    """Gateways get the engine's own refusal; launches are tried again after seconds, then a minute: it may be repaired."""
    world = World(wanted=3)
    await world.tick()
    world.policy.wanted = 1
    pauses: list[int] = []
    for _ in range(12):
        for replica_id in list(world.backend.replicas):
            world.backend.fail(replica_id, Trouble.of(InvalidModel("no such folder", param="model")))
        await world.tick(1)
        pauses.append(0)
        while not world.backend.replicas:
            trouble = world.state().trouble
            assert trouble is not None
            error = trouble.error()
            assert isinstance(error, InvalidModel)
            assert (error.message, error.param) == ("no such folder", "model")
            await world.tick(1)
            pauses[-1] += 1
    assert pauses == sorted(pauses)
    assert pauses[0] < 5
    assert pauses[-1] < 62


@pytest.mark.parametrize("offer", [SPOT, ON_DEMAND])
async def test_a_replica_that_was_ready_and_is_killed_is_no_failed_start(offer: Offer) -> None:
    """However soon, and however often: the next one is launched at once, and gateways hear of no trouble."""
    world = World()
    world.policy.offer = offer
    for _ in range(5):
        (replica,) = await world.up()
        world.backend.kill(replica)
        await world.tick(1)
        assert len(world.backend.replicas) == 1
        assert world.state().trouble is None


async def test_starts_that_fail_are_tried_again_with_growing_pauses() -> None:
    """One at a time; after some, those who wait are told; one that succeeds ends it."""
    world = World(wanted=4)
    await world.tick()
    tried = [len(world.backend.replicas)]
    launches = []
    for second in range(60):
        for replica_id in list(world.backend.replicas):
            launches.append(second)
            world.backend.fail(replica_id, Trouble("EngineUnavailable", "killed: out of memory"))
        await world.tick(1)
    pauses = [b - a for a, b in zip(launches[tried[0] :], launches[tried[0] + 1 :], strict=False)]
    assert pauses == sorted(pauses)
    assert len(launches) < 12
    assert world.state().trouble is not None
    while not world.backend.replicas:
        await world.tick(1)
    world.backend.ready(next(iter(world.backend.replicas)))
    await world.tick(1)
    assert world.state().trouble is None
    assert len(world.backend.replicas) == 4


async def test_trouble_is_not_told_while_something_serves() -> None:
    """A replica more that cannot start is no reason to refuse requests."""
    world = World()
    await world.up(1)
    world.policy.wanted = 2
    await world.tick(1)
    for status in list(world.backend.replicas.values()):
        if status.phase == "pending":
            world.backend.fail(status.id, Trouble.of(InvalidModel("gone")))
    await world.tick(1)
    assert world.state().trouble is None


async def test_a_start_that_takes_for_ever_fails() -> None:
    """After start_s."""
    world = World(wanted=1)
    await world.tick()
    world.backend.start("c1")
    await world.tick(PACE.start_s + 2)
    assert "c1" in world.backend.stopped


# -- health


async def test_a_replica_that_hangs_is_replaced() -> None:
    """It lives and its link is up, but nobody sees it work."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    await gateway.live(100)
    assert world.phases == {replica: "ready"}
    await gateway.live(int(PACE.stall_s) + 2, working=False)
    assert replica in world.backend.stopped
    assert replica not in world.phases


async def test_a_replica_that_one_gateway_sees_work_stays() -> None:
    """The other's link is cut: that one has to help itself."""
    world = World()
    (replica,) = await world.up()
    near, far = Gateway(world, "near"), Gateway(world, "far")
    near.uses = {replica: ReplicaUse()}
    far.uses = {replica: ReplicaUse(running=1, connected=False)}
    for _ in range(100):
        far.report()
        await near.live(1)
    assert world.phases == {replica: "ready"}


async def test_a_replica_that_nobody_reaches_is_replaced_soon() -> None:
    """Neither its gateways nor its backend: long before the backend calls it dead. A lost spot machine, to the policy."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(connected=False)}
    await gateway.live(int(PACE.cut_s) + 2)
    assert world.phases == {replica: "ready"}  # the backend does reach it
    world.backend.silence(replica)
    await gateway.live(2)
    assert replica not in world.phases
    assert replica in world.backend.stopped
    assert world.policy.seen[-1].offers[0].preempted_s > 0


async def test_a_silent_backend_alone_ends_nothing() -> None:
    """Its supervisor may be busy; gateways reach the engine."""
    world = World()
    (replica,) = await world.up()
    world.backend.silence(replica)
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    await gateway.live(60)
    assert world.phases == {replica: "ready"}


async def test_a_machine_that_slept_condemns_nobody() -> None:
    """The clock jumps by an hour: no gateway is forgotten and no replica ended."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.uses = {replica: ReplicaUse(running=1)}
    await gateway.live(3)
    world.now_s += 3600
    await world.tick()
    world.now_s -= 1800  # and back
    await world.tick()
    assert world.phases == {replica: "ready"}
    assert world.controller.gateways


# -- a backend that does not answer


async def test_an_unreachable_backend_changes_nothing() -> None:
    """What is known stays and is told; no decision is made until it answers again."""
    world = World()
    (replica,) = await world.up()
    decided = len(world.policy.seen)
    world.backend.unreachable = True
    await world.tick(50)
    assert len(world.policy.seen) == decided
    assert [p.id for p in world.state().replicas] == [replica]
    world.backend.unreachable = False
    await world.tick(1)
    assert world.phases == {replica: "ready"}


async def test_a_launch_nobody_knows_the_end_of_is_looked_for() -> None:
    """The backend went away while it launched: the next look tells."""
    world = World()
    await world.tick()

    async def launch(replica_id: str, offer: Any) -> None:
        world.backend.unreachable = True
        world.backend._reach()

    world.backend.launch = launch  # type: ignore[method-assign]
    world.policy.wanted = 1
    await world.tick(1)
    assert len(world.controller.lives) == 1
    world.backend.unreachable, world.policy.wanted = False, 0
    await world.tick(1)
    assert not world.controller.lives


async def test_a_stop_that_did_not_work_is_repeated() -> None:
    """Until the backend lists the replica no more; it is not adopted again."""
    world = World()
    (replica,) = await world.up()
    world.backend.deaf = True
    world.policy.wanted, world.policy.drain = 0, [replica]
    await world.tick(4)
    assert world.backend.stopped.count(replica) >= 3
    assert not world.controller.lives
    world.backend.deaf = False
    await world.tick(2)
    assert not world.backend.replicas


# -- a controller that starts anew


async def test_a_new_controller_adopts_what_exists() -> None:
    """Replicas keep their places; nothing is launched twice, nothing drained before demand is known."""
    first = World()
    ids = await first.up(3)
    second = World(wanted=2, backend=first.backend, name="d")
    gateway = Gateway(second)
    gateway.heard = first.state()
    assert not gateway.report(requests=1_000_000).known
    second.policy.drain = [ids[0]]
    await second.tick(1)
    state = gateway.report()
    assert state.known
    assert {p.id: p.state for p in state.replicas} == dict.fromkeys(ids, "ready")
    assert state.epoch != first.state().epoch
    assert sum(second.policy.seen[-1].demand.requests) == 0  # its sums are from before
    assert len(second.backend.replicas) == 3


async def test_versions_of_another_controller_prove_nothing() -> None:
    """A gateway that has carried out version 99 of the one before has not heard of a drain by this one."""
    world = World()
    (replica,) = await world.up()
    gateway = Gateway(world)
    gateway.heard = FleetState(epoch="before", version=99, known=True)
    world.policy.wanted, world.policy.drain = 0, [replica]
    await world.tick(1)
    gateway.report()
    await world.tick()
    assert world.phases == {replica: "draining"}


async def test_without_gateways_everything_is_given_back() -> None:
    """After orphan_s; then the controller may end. A gateway that comes brings it back."""
    world = World(pace=Pace(orphan_s=100.0, settle_s=5.0))
    await world.up(2)
    world.policy.wanted = 2
    await world.tick(90)
    assert len(world.backend.replicas) == 2
    await world.tick(20)
    assert not world.backend.replicas
    assert world.controller.deserted
    Gateway(world).report()
    await world.tick(1)
    assert len(world.backend.replicas) == 2
    assert not world.controller.deserted


async def test_a_policy_that_fails_does_not_end_the_loop() -> None:
    """The tick is lost; the next one decides again."""

    class Moody(Orders):
        def decide(self, seen: Snapshot, memory: int) -> tuple[Decision, int]:
            if not memory and len(self.seen) < 2:
                self.seen.append(seen)
                raise ZeroDivisionError
            return super().decide(seen, memory)

    import asyncio

    world = World(policy=Moody(1), pace=Pace(tick_s=0.001))
    running = asyncio.create_task(world.controller.run())
    async with asyncio.timeout(10):
        while not world.backend.replicas:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- demand


async def test_demand_is_what_gateways_counted_between_reports() -> None:
    """Sums of several gateways; a report twice, or one lost, changes nothing."""
    world = World()
    a, b = Gateway(world, "a"), Gateway(world, "b")
    for second in range(20):
        for gateway in (a, b):
            gateway.report(requests=10 * (second + 1), output_tokens=second + 1, in_flight=3, held=1)
            if second % 3:
                gateway.report()
        await world.tick(1)
    demand = world.policy.seen[-1].demand
    assert demand.bin_s == 1
    assert list(demand.requests) == [20] * 20
    assert list(demand.output_tokens) == [2] * 20
    assert demand.in_flight[-1] == pytest.approx(6)
    assert demand.held == 2


async def test_history_is_told_in_bins_that_end_now() -> None:
    """Of `bin_s` seconds, as many as there is history for; what held between two looks goes on."""
    history = History(bin_s=10, history_s=40)
    for second in range(95):
        before = GatewayReport(gateway="g", requests=second)
        history.add(second + 0.5, before, GatewayReport(gateway="g", requests=second + 1))
        if second % 2:
            history.seen(second + 0.5, 4.0)
    demand = history.demand(95.0, held=0, oldest_wait_s=0.0)
    assert list(demand.requests) == [10] * 4
    assert list(demand.in_flight) == [4] * 4
    assert list(history.demand(98.0, 0, 0.0).requests) == [10, 10, 10, 7]


async def test_load_of_a_replica_is_of_all_gateways() -> None:
    """Running and waiting are summed."""
    world = World()
    (replica,) = await world.up()
    for name in "abc":
        gateway = Gateway(world, name)
        gateway.uses = {replica: ReplicaUse(running=3, waiting=1)}
        gateway.report()
    await world.tick(1)
    seen = world.policy.seen[-1].replicas[0]
    assert (seen.running, seen.waiting) == (9, 3)
