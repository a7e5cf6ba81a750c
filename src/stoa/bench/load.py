"""Sends HTTP requests over many connections, as fast as answers come. A few lines on sockets: what is measured is the
server, and a full client would cost more than it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """Seconds that each answer took beyond what the engine takes, and how many were not 200."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.seconds) / self.wall_s


def post(host: str, path: str, body: bytes, key: str | None) -> bytes:
    """A request as it goes over the wire."""
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if key is not None:
        head.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*head, "", ""]).encode() + body


async def run_load(
    port: int,
    requests: Sequence[tuple[bytes, float]],
    *,
    connections: int,
    seconds: float,
    warm_s: float = 1.0,
) -> Load:
    """`requests`: bytes, and seconds that the engine behind the server takes for them; sent in random order, so that
    connections do not march in step. Each connection sends its next one when it has its answer. In the first `warm_s`,
    which do not count, they begin one after the other."""
    load = Load()
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    first = [i / connections * warm_s for i in range(connections)]  # not all at once, ever after
    await asyncio.gather(*(_connection(port, requests, at, begin, end, load) for at in first))
    load.wall_s = seconds
    return load


async def _connection(
    port: int, requests: Sequence[tuple[bytes, float]], wait_s: float, begin: float, end: float, load: Load
) -> None:
    rng = random.Random(wait_s)
    await asyncio.sleep(wait_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while (started := time.perf_counter()) < end:
            request, engine_s = rng.choice(requests)
            writer.write(request)
            status = await _answer(reader)
            now = time.perf_counter()
            if begin <= started and now <= end:
                load.refused += status != 200
                load.seconds.append(now - started - engine_s)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            await reader.readexactly(int(value))
            break
    else:
        while (size := int(await reader.readline(), 16)) or not await reader.readline():
            if not size:
                break
            await reader.readexactly(size + 2)
    return int(lines[0].split()[1])
