"""Adapters at a remote that has /v1/load_lora_adapter (vLLM, Stoa): loaded on demand, named by their content.

What is loaded there vanishes when the remote restarts; a request that then meets a 404 says so (`vanished`), and the
adapter is loaded again. Of what is not in use, the longest unused makes room.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import structlog

from stoa.engine.request import AdapterRef
from stoa.errors import ReplicaLost
from stoa.fleet.remote.errors import ModelUnknown, NotCarried
from stoa.fleet.remote.mapping import loaded_name
from stoa.fleet.remote.settings import RemoteConfig

log = structlog.get_logger("stoa.fleet")
_PREFIX = "stoa-"
Post = Callable[[str, dict[str, Any]], Awaitable[object]]


@dataclass(eq=False)
class Slot:
    """A place at the remote. Release it after use."""

    name: str
    users: int = 0
    loading: asyncio.Task[None] | None = None


class RemoteAdapters:
    def __init__(self, config: RemoteConfig, post: Post) -> None:
        """`post`: (path, JSON body); raises ReplicaLost and its kinds."""
        self._config, self._post = config, post
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._slots)

    def adopt(self, names: list[str]) -> None:
        """Loaded there already, by this gateway before it restarted, or by another one."""
        for name in names:
            if name.startswith(_PREFIX):
                self._slots.setdefault(name, Slot(name))

    async def hold(self, ref: AdapterRef) -> Slot:
        """The adapter's slot, loaded, until it is released. Raises NotCarried while all slots are in use, and what the
        remote says if it cannot be loaded."""
        name = loaded_name(ref)
        slot = self._slots.get(name)
        if slot is None:
            victims = self._make_room()
            slot = self._slots[name] = Slot(name)
            slot.loading = asyncio.create_task(self._load(slot, ref, victims))
            slot.loading.add_done_callback(_heard)
        self._slots.move_to_end(name)
        slot.users += 1
        try:
            if slot.loading is not None:
                await asyncio.shield(slot.loading)
        except BaseException:
            slot.users -= 1
            raise
        return slot

    def release(self, slot: Slot) -> None:
        slot.users -= 1

    def vanished(self, slot: Slot) -> None:
        """The remote does not know it any more."""
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]

    async def forget(self, adapter_id: str) -> None:
        slot = self._slots.pop(loaded_name(AdapterRef(id=adapter_id, path="")), None)
        if slot is not None:
            await self._unload(slot)

    def _make_room(self) -> list[Slot]:
        """Takes out what must go before another one comes."""
        excess = len(self._slots) + 1 - self._config.max_adapters
        idle = [s for s in self._slots.values() if not s.users and s.loading is None]
        if len(idle) < excess:
            raise NotCarried(f"all {self._config.max_adapters} adapters there are in use")
        for slot in idle[: max(0, excess)]:
            del self._slots[slot.name]
        return idle[: max(0, excess)]

    async def _load(self, slot: Slot, ref: AdapterRef, victims: list[Slot]) -> None:
        try:
            for victim in victims:
                await self._unload(victim)
            body = {"lora_name": slot.name, "lora_path": self._path(ref.path)}
            try:
                await self._post("/load_lora_adapter", body)
            except NotCarried as error:
                if "already" not in error.message:  # names say what is in them, so that is as good
                    raise
            except ModelUnknown as error:
                raise NotCarried(f"it cannot load adapters, or does not find the folder: {error}") from None
            slot.loading = None
        except BaseException:
            self.vanished(slot)
            raise

    async def _unload(self, slot: Slot) -> None:
        try:
            await self._post("/unload_lora_adapter", {"lora_name": slot.name})
        except ReplicaLost as error:
            log.info("a remote did not unload an adapter", remote=self._config.name, error=error.message)

    def _path(self, path: str) -> str:
        """As the remote calls it: the longest of `adapter_paths` that it lies in decides."""
        here = PurePosixPath(path)
        for ours, theirs in sorted(self._config.adapter_paths.items(), key=lambda e: -len(e[0])):
            if here.is_relative_to(ours):
                return str(PurePosixPath(theirs) / here.relative_to(ours))
        return path


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited has it
