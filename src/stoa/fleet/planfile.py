"""A plan on disk that may change at any time: looked at every second, taken when it is right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import structlog

from stoa.errors import ConfigError
from stoa.fleet.policies.contract import read_plan
from stoa.fleet.policies.modelplan import ModelPlan

log = structlog.get_logger("stoa.fleet")
_Stamp = tuple[int, int, int, int] | None
Check = Callable[[ModelPlan], Awaitable[None]]


class PlanFile:
    """Raises ConfigError if there is no right plan in the beginning. `now`: Unix time."""

    def __init__(
        self, path: Path, model: str, *, machine: str = "", now: Callable[[], float] = time.time
    ) -> None:
        self._path, self._model, self._machine, self._now = path, model, machine, now
        self._stamp = self._look()
        self.plan = self._read(0.0, self._stamp)
        self._say("a plan is followed", self.plan)

    async def changed(self, check: Check | None = None) -> ModelPlan | None:
        """The new plan, if there is another one since the last call. One that is wrong, or that `check` raises
        ConfigError for, is logged, and the old one stays. Any other fault leaves it to be looked at again."""
        stamp = await asyncio.to_thread(self._look)
        if stamp == self._stamp:
            return None
        try:
            plan = await asyncio.to_thread(self._read, self.plan.read_s, stamp)
            if check is not None:
                await check(plan)
        except ConfigError as error:
            self._stamp = stamp  # it will not become right by itself; whatever else failed is tried again
            log.error("the new plan is refused; the old one stays", error=error.message)
            return None
        self._stamp = stamp
        self._say("a new plan is followed", plan)
        self.plan = plan
        return plan

    async def watch(
        self, tell: Callable[[ModelPlan], None], *, check: Check | None = None, every_s: float = 1.0
    ) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                plan = await self.changed(check)
                if plan is not None:
                    tell(plan)
            except Exception:
                log.exception("the fleet stumbled over its plan")

    def _say(self, what: str, plan: ModelPlan) -> None:
        now = plan.calendar.at(self._now())
        wanted = ", ".join(
            f"{p.replicas[now]}{' spot' if p.market == 'spot' else ''} at {p.place}" for p in plan.pools
        )
        log.info(
            what,
            file=str(self._path),
            made=plan.file.made,
            period=plan.period(now),
            replicas=wanted or "none",
        )

    def _read(self, before_s: float, stamp: _Stamp) -> ModelPlan:
        """`read_s` is when the file was put there (not when what is in it was written, which a copy keeps), so that gateways
        that read it at different times agree on it."""
        written_s = stamp[0] / 1e9 if stamp is not None else 0.0
        read_s = written_s if written_s > before_s else max(self._now(), before_s + 1e-3)
        return ModelPlan.of(read_plan(self._path), self._model, machine=self._machine, read_s=read_s)

    def _look(self) -> _Stamp:
        """What changes with the file; None: there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino


def check_names(plan: ModelPlan, names: Mapping[str, str]) -> None:
    """`names`: of projects, by id. ConfigError where the plan means projects by their names: requests bear ids, and a rule
    that nothing fits keeps nobody anywhere."""
    unheard = [word for word in plan.projects() if not any(fnmatchcase(i, word) for i in names)]
    if unheard:
        log.warning("the plan speaks of projects that nobody has made yet", projects=", ".join(unheard))
    for word in plan.projects():
        meant = [i for i, name in names.items() if fnmatchcase(name, word)]
        if meant and not any(fnmatchcase(i, word) for i in names):
            raise ConfigError(
                f"the plan speaks of the project {word!r}, which is a name; accepted: ids, here {', '.join(sorted(meant))}",
                param="projects",
            )
