"""What the HTTP room serves, and the little it needs to know of whoever runs the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import ModelNotFound

T = TypeVar("T")
_SHORT_CHARS = 4_000  # take less time than a change of thread
_LONG_CHARS = 100_000

if TYPE_CHECKING:
    from stoa.economics.records import Endpoint
    from stoa.engine.adapters.registry import AdapterEntry
    from stoa.storage.database import Database
    from stoa.tenancy.adapters import ProjectAdapters
    from stoa.tenancy.office import Office
    from stoa.tenancy.principal import Principal


class Replica(Protocol):
    """Where requests run: an engine process of this machine, or several of them behind a router."""

    @property
    def ready(self) -> bool: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    def states(self) -> dict[str, int]:
        """How many replicas are starting, ready, draining or lost, and requests held for want of one."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenEvent]]:
        """Batches of events until all choices have finished. An async generator: closing it cancels the
        request. Raises QueueFull, EngineUnavailable."""
        ...

    async def stats(self) -> EngineStats: ...

    async def warm(self, ref: AdapterRef) -> None: ...

    async def forget(self, adapter_id: str) -> None: ...


class Authenticator(Protocol):
    """Implemented by `tenancy.authority.Authority` and the tests' fake."""

    async def authenticate(self, secret: str | None) -> Principal:
        """Raises Unauthorized, DatabaseUnavailable."""
        ...


class Metering(Protocol):
    """Implemented by `tenancy.metering.Metering` and the tests' fake."""

    async def admit(
        self,
        principal: Principal,
        requests: Sequence[GenerationRequest],
        *,
        model: str,
        adapter: str = "",
        endpoint: Endpoint = "completions",
        request_id: str,
    ) -> Ticket:
        """Raises PermissionDenied, RateLimited, QuotaExceeded, RequestTooLarge, DatabaseUnavailable."""
        ...


class Ticket(Protocol):
    """What `Metering.admit` gives. Close it when nothing more is sent to the engine."""

    @property
    def requests(self) -> list[GenerationRequest]: ...

    @property
    def headers(self) -> dict[str, str]: ...

    def close(self) -> None: ...


class Lanes:
    """Threads for rendering and encoding prompts, unless they are short. Long ones queue in a lane of their own, so
    that they hold up neither others nor anything else."""

    def __init__(self) -> None:
        self._usual = ThreadPoolExecutor(4, thread_name_prefix="prompts")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="long-prompts")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """`size`: characters of the prompt, about."""
        if size <= _SHORT_CHARS:
            return work()
        lane = self._long if size > _LONG_CHARS else self._usual
        return await asyncio.get_running_loop().run_in_executor(lane, work)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One base model, its adapters, and the limits of the door."""

    model_id: str
    replica: Replica
    tokenizer: Tokenizer
    adapters: ProjectAdapters  # reads the disk, so it is asked in a thread
    authority: Authenticator
    metering: Metering
    office: Office | None = None  # for administrators; None: no such endpoints
    database: Database | None = None
    vocab_size: int  # number of logits: the tokenizer's may be smaller
    max_body_bytes: int = 8 << 20
    max_queue: int = 1024  # requests that the replica takes at once
    max_choices: int = 128  # n, times the prompts of one request
    max_inputs: int = 2048  # texts in one embedding request
    max_lora: int = 64  # adapters that one step can hold, for routers
    keeps_source: bool = False  # some remote renders conversations itself
    keys_wanted: bool = False  # does /v1/* ask for a key?
    lanes: Lanes = field(default_factory=Lanes)
    created: int = field(default_factory=lambda: int(time.time()))

    async def adapter(self, project_id: str, name: str) -> AdapterEntry | None:
        """The adapter that `model` means in a request of the project; None for the base model. Raises ModelNotFound."""
        if name == self.model_id:
            return None
        try:
            return await asyncio.to_thread(self.adapters.get, project_id, name)
        except ModelNotFound:
            message = f"The model `{name[:200]}` does not exist; GET /v1/models lists those that do"
            raise ModelNotFound(message, param="model") from None


def adapter_name(entry: AdapterEntry | None) -> str:
    """name@version, as usage records have it; "" for the base model."""
    return "" if entry is None else f"{entry.name}@{entry.version}"
