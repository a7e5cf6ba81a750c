"""Another service as a replica of the fleet: any endpoint that speaks OpenAI's API (vLLM, another Stoa, a provider).

open ─▶ fits? ─▶ breaker ─▶ allowance ─▶ adapter there? ─▶ POST, stream ─▶ events … used
          └───────────┴─────────┴──────────────┴────────────────┴──▶ lost: another replica goes on
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from stoa.economics.api_prices import ApiPrice, Purchase
from stoa.economics.node import Node
from stoa.engine.request import AdapterRef, GenerationRequest, TokenEvent
from stoa.engine.stats import EngineStats
from stoa.engine.tokenizer import Tokenizer
from stoa.errors import EngineUnavailable, QueueFull, ReplicaLost, StoaError
from stoa.fleet.books import Books
from stoa.fleet.policies.modelplan import ModelPlan
from stoa.fleet.remote.adapters import RemoteAdapters, Slot
from stoa.fleet.remote.allowance import Allowance
from stoa.fleet.remote.breaker import Breaker, Permit
from stoa.fleet.remote.calls import Calls
from stoa.fleet.remote.errand import Errand
from stoa.fleet.remote.errors import ModelUnknown, NotCarried, Throttled
from stoa.fleet.remote.mapping import mapped_model, unfit
from stoa.fleet.remote.settings import RemoteConfig
from stoa.fleet.replica import Receiver
from stoa.tenancy.meters.interface import Hold
from stoa.tenancy.meters.memory import MemoryMeters

log = structlog.get_logger("stoa.fleet")
_EXCERPT = 100  # characters of a remote's words that a client gets
Pricing = Callable[[str, int], ApiPrice]  # the remote's name of a model, Unix seconds
Buy = Callable[[str, Purchase], None]  # account as in the request; never waits


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard] = []


@dataclass(eq=False)
class _Running:
    """One request on its way. What it holds is given back in `RemoteReplica._end`."""

    request: GenerationRequest
    receiver: Receiver
    price: ApiPrice
    errand: Errand
    permit: Permit | None  # None: the breaker has heard the end
    answered: bool = False  # something came
    lost: bool = False
    hold: Hold | None = None
    slot: Slot | None = None
    model: str = ""  # as it is called there
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class RemoteReplica:
    """Implements `fleet.replica.Replica`. For one event loop."""

    ours = False

    def __init__(
        self,
        config: RemoteConfig,
        base: str,
        *,
        calls: Calls,
        tokenizer: Tokenizer | None = None,
        allowance: Allowance | None = None,
        pricing: Pricing | None = None,
        buy: Buy = lambda account, purchase: None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`base`: our id of the base model; `tokenizer`: of it; without, answers are text that nobody can continue.
        `clock` never goes backwards, `now` is Unix time."""
        self.config = config
        self.id = config.name
        self.node = Node(name=config.name, machine="api", zone=config.place)
        self.kernels = f"remote:{config.name}"
        self.notice = ""
        self.restarts = 0
        self.max_model_len = config.max_model_len
        self.changed: Callable[[], None] = lambda: None  # told when `ready` may have changed
        self._base, self._tokenizer = base, tokenizer
        self._calls = calls
        self._allowance = allowance or Allowance(config, MemoryMeters(clock), now)
        self._pricing = pricing or (lambda model, at_s: config.price)
        self._buy = buy
        self._breaker = breaker or Breaker()
        self._clock, self._now = clock, now
        self._adapters = RemoteAdapters(config, lambda path, body: calls.ask("POST", path, body))
        self._running: dict[str, _Running] = {}
        self._seen = not config.load_adapters and config.max_model_len > 0
        self._stopped = False
        self._full_until_s = float("-inf")  # a limit of ours is reached
        self._wake: asyncio.TimerHandle | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._prompt_tokens = self._completion_tokens = 0

    # -- what the fleet asks

    @property
    def ready(self) -> bool:
        return (
            self._seen
            and not self._stopped
            and len(self._running) < self.config.max_in_flight
            and not self._allowance.is_spent
            and self._clock() >= self._full_until_s
            and self._breaker.would_admit(self._clock())
        )

    def follow(self, plan: ModelPlan) -> None:
        """What it may cost, beside its own budgets."""
        self._allowance.limit_day(plan.section.daily_usd.get(self.id))
        self.changed()

    def keep_books(self, books: Books) -> None:
        """It has no time of its own to book; what it takes goes to `buy`."""

    def unfit(self, request: GenerationRequest) -> str | None:
        """Why the remote cannot have this request, whatever its state; None: it can. For routers: `open` loses such a
        request."""
        return unfit(self.config, self._base, request, self.max_model_len)

    def open(self, request: GenerationRequest, receiver: Receiver) -> None:
        self._breaker, permit = self._breaker.admit(self._clock())
        if permit is None or self._stopped or request.id in self._running or self.unfit(request) is not None:
            if permit is not None:
                self._breaker = self._breaker.abandoned(permit)
            receiver.lost()
            return

        def emit(events: list[TokenEvent]) -> None:
            one.answered = True
            receiver.events(events)

        errand = Errand(self.config, request, self._tokenizer, emit, self._clock)
        one = _Running(request, receiver, self.config.price, errand, permit)
        self._running[request.id] = one
        one.task = asyncio.create_task(self._serve(one))
        one.task.add_done_callback(lambda _: self._end(one))  # also of a task that never began
        if not self.ready:  # full, or the breaker lets nobody else in for now
            self.changed()

    def cancel(self, request_id: str) -> None:
        one = self._running.get(request_id)
        if one is not None and one.task is not None:
            one.task.cancel()

    async def stats(self) -> EngineStats:
        """Raises EngineUnavailable when it is not up."""
        if not self._seen:
            raise EngineUnavailable(f"the remote {self.id} has not answered yet")
        first = sum(not one.answered for one in self._running.values())
        return EngineStats(
            running=len(self._running) - first,
            waiting=first,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._completion_tokens,
            adapters_resident=len(self._adapters),
        )

    def warm(self, ref: AdapterRef) -> None:
        if self.config.load_adapters and not self._stopped:
            self._later(self._warm(ref))

    def forget(self, adapter_id: str) -> None:
        if self.config.load_adapters and not self._stopped:
            self._later(self._forget(adapter_id))

    async def start(self) -> None:
        """Returns at once; asks the remote what it is until it has said so."""
        if not self._seen:
            self._later(self._probe())

    async def stop(self) -> None:
        self._stopped = True
        self.changed()
        if self._wake is not None:
            self._wake.cancel()
        tasks = [one.task for one in self._running.values() if one.task is not None]
        for task in (*tasks, *self._chores):
            task.cancel()
        await asyncio.gather(*tasks, *self._chores, return_exceptions=True)
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._calls.close()

    # -- one request

    async def _serve(self, one: _Running) -> None:
        try:
            await self._begin(one)
            await self._run(one)
            self._turn(lambda b, p: b.succeeded(p), one)
        except asyncio.CancelledError:
            self._turn(lambda b, p: b.succeeded(p) if one.answered else b.abandoned(p), one)
        except Exception as error:
            if not isinstance(error, StoaError):
                log.exception("a remote's answer could not be handled", remote=self.id)
                error = ReplicaLost(f"its answer could not be handled: {type(error).__name__}")
            self._blame(one, error)
            one.lost = one.errand.resumable
            if not one.lost:
                self._fail(one, error)

    async def _begin(self, one: _Running) -> None:
        """Takes what the request needs. Raises QueueFull, NotCarried, ReplicaLost."""
        request = one.request
        one.model = mapped_model(self.config, self._base, request) or ""
        one.price = self._pricing(one.model or self.config.models.get(self._base, ""), int(self._now()))
        prompt = len(request.prompt_token_ids) + max((len(s or ()) for s in request.so_far), default=0)
        calls = sum(s is not None for s in request.so_far) or 1
        most = request.n * request.params.max_tokens
        one.hold = await self._allowance.take(calls * prompt, most, one.price)

    async def _run(self, one: _Running) -> None:
        if one.model:
            await one.errand.run(self._calls, one.model)
            return
        assert one.request.adapter is not None
        await self._hold_adapter(one, one.request.adapter)
        try:
            await one.errand.run(self._calls, one.model)
        except ModelUnknown:
            if one.errand.shown or one.slot is None:
                raise
            self._adapters.vanished(one.slot)
            self._adapters.release(one.slot)
            one.slot = None
            await self._hold_adapter(one, one.request.adapter)
            await one.errand.run(self._calls, one.model)

    async def _hold_adapter(self, one: _Running, ref: AdapterRef) -> None:
        one.slot = await self._adapters.hold(ref)
        one.model = one.slot.name

    def _fail(self, one: _Running, error: StoaError) -> None:
        """Nobody can go on from text whose tokens are not known."""
        one.receiver.events(
            [
                TokenEvent(
                    request_id=one.request.id,
                    finish_reason="error",
                    error=f"the answer broke off in the middle: {error.message[:_EXCERPT]}",
                    error_code=EngineUnavailable.code,
                    prompt_tokens=len(one.request.prompt_token_ids),
                )
            ]
        )
        one.errand.outcome = "error"

    def _end(self, one: _Running) -> None:
        """Gives back what it held; its receiver hears `used` or `lost`, as the last thing."""
        del self._running[one.request.id]
        if one.slot is not None:
            self._adapters.release(one.slot)
        name = self.config.models.get(self._base, "") if one.slot is not None else one.model
        bought = one.errand.purchase(name, one.price, int(self._now()))
        nanos = 0 if bought is None else bought.parts.total_nanos
        if one.hold is not None:
            self._later(self._allowance.settle(one.hold, one.errand.tokens, nanos), self._settling)
        if bought is not None and not one.price.is_free:
            self._buy(one.request.account, bought)
        usage = one.errand.used()
        self._prompt_tokens += usage.prompt_tokens
        self._completion_tokens += usage.completion_tokens
        if one.lost:
            one.receiver.lost()
        else:
            one.receiver.used(usage, nanos)
        if len(self._running) == self.config.max_in_flight - 1:
            self.changed()

    # -- the breaker

    def _blame(self, one: _Running, error: StoaError) -> None:
        """What the error says of the remote."""
        now = self._clock()
        log.warning(
            "a remote did not answer a request", remote=self.id, request=one.request.id, error=error.message
        )
        if isinstance(error, Throttled):
            self._turn(lambda b, p: b.throttled(p, now, error.retry_after_s), one)
        elif isinstance(error, QueueFull):
            self._full_until_s = max(self._full_until_s, now + error.retry_after_s)
            self._turn(lambda b, p: b.abandoned(p), one)
        elif isinstance(error, NotCarried) or (isinstance(error, ModelUnknown) and one.slot is not None):
            self._turn(lambda b, p: b.abandoned(p), one)
        else:
            self._turn(lambda b, p: b.failing(p, now), one)

    def _turn(self, change: Callable[[Breaker, Permit], Breaker], one: _Running) -> None:
        """The breaker hears the end of the call."""
        if one.permit is None:
            return
        before = self._breaker.phase
        self._breaker, one.permit = change(self._breaker, one.permit), None
        if self._breaker.phase != before:
            log.warning("a remote's breaker", remote=self.id, phase=self._breaker.phase)
        now = self._clock()
        wait_s = max(self._breaker.wait_s(now), self._full_until_s - now, 0.0)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if wait_s and not self._stopped:
            self._wake = asyncio.get_running_loop().call_later(wait_s + 0.01, lambda: self.changed())
        self.changed()

    # -- chores

    def _later(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]] | None = None) -> None:
        tasks = self._chores if among is None else among
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _probe(self) -> None:
        while not self._seen:
            try:
                self._look(await self._calls.ask("GET", "/models"))
            except ReplicaLost as error:
                self.notice = f"the remote {self.id} does not answer: {error.message}"
                log.info("a remote does not answer yet", remote=self.id, error=error.message)
            if not self._seen:
                await asyncio.sleep(self.config.probe_s)
        self.changed()

    def _look(self, body: bytes) -> None:
        """Takes from its list of models what it is. Raises ReplicaLost."""
        try:
            cards = {card.id: card for card in msgspec.json.decode(body, type=ModelList).data}
        except msgspec.MsgspecError as error:
            raise ReplicaLost(f"its list of models cannot be read: {error}") from None
        wanted = self.config.models.get(self._base)
        card = cards.get(wanted or "")
        if wanted is not None and card is None:
            raise ReplicaLost(
                f"it does not serve {wanted!r}; it has {self._calls.shown(', '.join(sorted(cards)) or 'none')}"
            )
        if not self.max_model_len:
            lengths = [c.max_model_len for c in ([card] if card else cards.values()) if c.max_model_len]
            if not lengths:
                raise ReplicaLost("it does not say how long its context is; set max_model_len")
            self.max_model_len = min(lengths)
        self._adapters.adopt(list(cards))
        self.notice, self._seen = "", True

    async def _warm(self, ref: AdapterRef) -> None:
        try:
            self._adapters.release(await self._adapters.hold(ref))
        except StoaError as error:
            log.info("an adapter was not loaded ahead", remote=self.id, error=error.message)

    async def _forget(self, adapter_id: str) -> None:
        await self._adapters.forget(adapter_id)
