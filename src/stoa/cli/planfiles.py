"""The plan that `stoa serve --plan` follows, and who is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from stoa.tenancy.principal import DEFAULT_ORGANIZATION

if TYPE_CHECKING:
    from stoa.cli.fleets import ServedFleet
    from stoa.config import Settings
    from stoa.fleet.planfile import PlanFile
    from stoa.fleet.policies.modelplan import ModelPlan
    from stoa.fleet.remote import RemoteConfig
    from stoa.tenancy.projects import Projects

log = structlog.get_logger("stoa.fleet")


@dataclass
class FollowedPlan:
    """`file` None: there is no plan, and nobody is ever told."""

    file: PlanFile | None
    _followers: list[Callable[[ModelPlan], None]] = field(default_factory=list)
    _watching: asyncio.Task[None] | None = None

    def tell(self, follow: Callable[[ModelPlan], None]) -> None:
        """Now, and of each new plan."""
        if self.file is not None:
            follow(self.file.plan)
            self._followers.append(follow)

    async def watch(self, projects: Projects) -> None:
        """From now on. Raises ConfigError if the plan means projects by what they are called."""
        if self.file is None:
            return

        async def check(plan: ModelPlan) -> None:
            check_names(plan, await projects.names(DEFAULT_ORGANIZATION))

        from stoa.fleet.planfile import check_names

        await check(self.file.plan)
        self._watching = asyncio.create_task(self.file.watch(self._changed, check=check))

    def _changed(self, plan: ModelPlan) -> None:
        for follow in self._followers:
            follow(plan)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)


def open_plan(
    settings: Settings, model_id: str, served: ServedFleet, remotes: Sequence[RemoteConfig]
) -> FollowedPlan:
    """The fleet follows it before it gets its first request. Raises ConfigError."""
    if not settings.plan:
        return FollowedPlan(None)
    from stoa.fleet.planfile import PlanFile  # with the rest that only a plan needs

    followed = FollowedPlan(PlanFile(Path(settings.plan), model_id, machine=settings.machine))
    followed.tell(served.follow)
    followed.tell(lambda plan: _check_remotes(plan, remotes))
    followed.tell(lambda plan: _check_zone(plan, settings))
    return followed


def _check_zone(plan: ModelPlan, settings: Settings) -> None:
    """Who runs replicas on this machine, and does not say where it is, is outside every place."""
    if not settings.cluster and plan.has_residency and not plan.place_of(settings.zone):
        log.warning(
            "the plan does not know where this machine is; groups that may not be served everywhere are not served here",
            zone=settings.zone,
            accepted=", ".join(p.name for p in plan.file.places),
        )


def _check_remotes(plan: ModelPlan, remotes: Sequence[RemoteConfig]) -> None:
    """Says what will not happen as the plan has it."""
    missing = plan.remotes - {r.name for r in remotes}
    if missing:
        log.warning("the plan sends to remotes that are not configured", remotes=", ".join(sorted(missing)))
    for remote in remotes:
        if remote.name in plan.remotes and not plan.place_of(remote.place):
            log.warning(
                "the plan does not know where a remote is; groups that may not be served everywhere do not go there",
                remote=remote.name,
                place=remote.place,
            )
        if plan.section.daily_usd.get(remote.name) is not None and remote.price.is_free:
            log.warning(
                "a remote has a daily budget and no price: nothing counts against it", remote=remote.name
            )
