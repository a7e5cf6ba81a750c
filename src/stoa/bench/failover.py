"""`stoa bench failover`: what a stream notices of a replica that dies, hangs, or is drained.

Two engine processes on a core each. Streams run on both; one process is killed (`kill -9`), silenced (SIGSTOP, as a cut
network), or drained. Measured is the longest pause of each stream that had to move, against one prefill of all its
tokens on the other replica, and whether tokens are the ones of a run without fault.

What being ready for this costs while nothing happens: the same streams on one replica through the fleet, which keeps what
was said, and straight from the engine's connection.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stoa.bench.drive import percentile
from stoa.bench.folders import model_folder
from stoa.bench.machine import machine_facts
from stoa.economics.node import Node
from stoa.engine.config import EngineConfig
from stoa.engine.request import GenerationRequest, SamplingParams, TokenEvent
from stoa.engine.usage import RequestUsage
from stoa.fleet.backends.process import EngineProcess
from stoa.fleet.fleet import Fleet
from stoa.fleet.link import EngineLink
from stoa.fleet.linked import DistantReplica

Fault = Literal["kill", "silence", "drain"]
FAULTS: tuple[Fault, ...] = ("kill", "drain", "silence")
_TOKEN = "of this measurement"


@dataclass
class Stream:
    """When tokens came to a client."""

    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    @property
    def longest_pause_s(self) -> float:
        return max(b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False))


def run(
    model: str,
    *,
    cache: Path,
    streams: int = 4,
    prompt_tokens: int = 512,
    output_tokens: int = 96,
    rounds: int = 5,
    silence_s: float = 5.0,
    faults: tuple[Fault, ...] = FAULTS,
) -> dict[str, Any]:
    """`streams`: on each replica."""
    folder = model_folder(model, cache)
    config = EngineConfig(
        model=str(folder), threads=1, max_model_len=prompt_tokens + output_tokens + 64, pool_bytes=1 << 30
    )
    asked = [_request(i, prompt_tokens, output_tokens) for i in range(2 * streams)]
    rows = asyncio.run(_measure(config, asked, rounds, silence_s, faults))
    readiness = asyncio.run(_readiness(config, asked, rounds))
    return {
        "machine": machine_facts(),
        "model": {"name": model},
        "workload": {
            "streams": streams, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, "rounds": rounds,
        },
        "rows": rows,
        "readiness": readiness,
    }  # fmt: skip


async def _readiness(config: EngineConfig, asked: list[GenerationRequest], rounds: int) -> dict[str, Any]:
    """Seconds for all streams, in turns, straight and through the fleet, and their ratio; the median of pairs."""
    pairs = []
    async with _pair(config, silence_s=5.0) as (fleet, _):
        fleet.members["r1"].draining = True
        fleet.changed()
        link = _link_of(fleet)
        for number in range(-1, max(rounds, 5)):
            started = time.perf_counter()
            await asyncio.gather(*(_straight(link, _named(r, f"{r.id}-s{number}")) for r in asked))
            between = time.perf_counter()
            await _all(fleet, asked, f"f{number}", [Stream() for _ in asked])
            if number >= 0:  # the first warms up
                pairs.append((between - started, time.perf_counter() - between))
    return {
        "straight_s": round(statistics.median(s for s, _ in pairs), 3),
        "fleet_s": round(statistics.median(f for _, f in pairs), 3),
        "ratio": round(statistics.median(f / s for s, f in pairs), 4),
        "pairs": len(pairs),
    }


def _link_of(fleet: Fleet) -> EngineLink:
    replica = fleet.members["r0"].replica
    assert isinstance(replica, DistantReplica)
    assert replica.link is not None
    return replica.link


class _Straight:
    """Receives a stream and keeps nothing but its end."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def events(self, events: list[TokenEvent]) -> None:
        if events[-1].finish_reason is not None:
            self.over.set()

    def used(self, usage: RequestUsage, cost_nanos: int) -> None: ...

    def lost(self) -> None:
        raise RuntimeError("the engine is gone")


async def _straight(link: EngineLink, request: GenerationRequest) -> None:
    receiver = _Straight()
    link.open(request, receiver)
    await receiver.over.wait()


async def _measure(
    config: EngineConfig,
    asked: list[GenerationRequest],
    rounds: int,
    silence_s: float,
    faults: tuple[Fault, ...],
) -> list[dict[str, Any]]:
    async with _pair(config, silence_s) as (fleet, _):
        quiet = await _all(fleet, asked, "quiet", [Stream() for _ in asked])
    usual_s = statistics.median(stream.longest_pause_s for stream in quiet)
    rows = []
    for fault in faults:
        pauses, prefills, different = [], [], 0
        for number in range(rounds):
            async with _pair(config, silence_s) as (fleet, processes):
                moved, answers, prefill_s = await _round(fleet, processes, asked, fault, number)
            pauses += [stream.longest_pause_s for stream in moved]
            prefills.append(prefill_s)
            different += sum(a.tokens != q.tokens for a, q in zip(answers, quiet, strict=True))
        prefill_s = statistics.median(prefills)
        rows.append({
            "fault": fault,
            "moved": len(pauses),
            "different": different,
            "usual_pause_ms": round(1e3 * usual_s, 1),
            "pause_ms": round(1e3 * statistics.median(pauses), 1),
            "pause_p99_ms": round(1e3 * percentile(pauses, 0.99), 1),
            "prefill_ms": round(1e3 * prefill_s, 1),
            "pause_per_prefill": round(statistics.median(pauses) / prefill_s, 2),
        })  # fmt: skip
    return rows


async def _round(
    fleet: Fleet, processes: list[EngineProcess], asked: list[GenerationRequest], fault: Fault, number: int
) -> tuple[list[Stream], list[Stream], float]:
    """Streams that moved, all streams, and the seconds of one prefill on the replica that stays."""
    streams = [Stream() for _ in asked]
    running = asyncio.create_task(_all(fleet, asked, f"{fault}-{number}", streams))
    half = asked[0].params.max_tokens // 2
    while not all(len(stream.tokens) >= half for stream in streams):  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    hit = {leg.journey.request.id for leg in fleet.members["r0"].legs}
    moved = [s for s, r in zip(streams, asked, strict=True) if f"{r.id}-{fault}-{number}" in hit]
    if fault == "drain":
        await fleet.drain("r0", grace_s=60)
    else:
        os.kill(processes[0].pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    answers = await running
    fleet.members["r0"].draining = True
    fleet.changed()
    length = len(asked[0].prompt_token_ids) + half
    started = time.perf_counter()
    await _read(fleet, _request(1000 + number, length, 1), Stream())
    return moved, answers, time.perf_counter() - started


async def _all(
    fleet: Fleet, asked: list[GenerationRequest], name: str, streams: list[Stream]
) -> list[Stream]:
    named = [_named(request, f"{request.id}-{name}") for request in asked]
    await asyncio.gather(*(_read(fleet, r, s) for r, s in zip(named, streams, strict=True)))
    return streams


async def _read(fleet: Fleet, request: GenerationRequest, stream: Stream) -> None:
    async for events in fleet.generate(request):
        for event in events:
            stream.tokens += event.token_ids
            stream.at_s.append(time.perf_counter())


def _request(number: int, prompt_tokens: int, output_tokens: int) -> GenerationRequest:
    rng = random.Random(number)
    return GenerationRequest(
        id=f"r{number}",
        prompt_token_ids=[rng.randrange(3, 4000) for _ in range(prompt_tokens)],
        params=SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=number),
    )


def _named(request: GenerationRequest, name: str) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_token_ids=request.prompt_token_ids, params=request.params)


@asynccontextmanager
async def _pair(config: EngineConfig, silence_s: float) -> AsyncIterator[tuple[Fleet, list[EngineProcess]]]:
    """Two engine processes, on a core each if there are two, and a fleet of them."""
    processes = [EngineProcess(config, host="127.0.0.1", token=_TOKEN) for _ in range(2)]
    cores = sorted(os.sched_getaffinity(0))
    fleet = Fleet()
    try:
        for i, process in enumerate(processes):
            os.sched_setaffinity(process.pid, {cores[i % len(cores)]})
        while not all(process.address for process in processes):
            if not all(process.alive for process in processes):
                raise RuntimeError("an engine process did not start")
            await asyncio.sleep(0.02)
        for i, process in enumerate(processes):
            replica = DistantReplica(f"r{i}", Node(), process.address, _TOKEN, silence_s=silence_s)
            fleet.add(replica)
            await replica.start()
        while not all(member.replica.ready for member in fleet.members.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield fleet, processes
    finally:
        await fleet.stop(0)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.end()
