"""Adapters on their way from disk to where kernels read them.

    disk ──loader thread──▶ host memory (LRU by bytes) ──loader thread──▶ run of pool pages (pinned or idle)

The engine thread only decides; reading and laying out happen on the loader threads, so a cold adapter
delays nobody but its own requests. An adapter is known by the hash of its content.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from stoa.engine.kernels.interface import Kernels, Linear, LoraPair, PackedAdapter
from stoa.engine.memory.pool import PagePool
from stoa.engine.request import AdapterRef
from stoa.errors import OutOfMemory, StoaError

Pairs = dict[tuple[int, str], LoraPair]
ModuleKeys = list[list[tuple[int, str]]]


@dataclass
class HostAdapter:
    """An adapter read and checked; `lay_out` puts it where it is told."""

    lay_out: Callable[[Tensor], PackedAdapter]
    host_bytes: int
    pool_bytes: int
    read_ns: int = 0  # how long reading and checking took


def stage(kernels: Kernels, linears: list[Linear], keys: ModuleKeys, pairs: Pairs) -> HostAdapter:
    """`keys`: which of `pairs` goes where, nested as `linears`."""
    nested = [[pairs.get(key) for key in group] for group in keys]
    ranks = [[p.a.shape[0] if p else 0 for p in group] for group in nested]
    return HostAdapter(
        lay_out=kernels.stage_adapter(linears, nested),
        host_bytes=sum(p.a.nbytes + p.b.nbytes for p in pairs.values()),
        pool_bytes=kernels.adapter_nbytes(linears, ranks),
    )


@dataclass
class Resident:
    """An adapter in the pool. Evictable once laid out and with no pins."""

    first_page: int
    num_pages: int
    pins: int = 0
    last_use: int = 0
    packed: PackedAdapter | None = None
    laying_out: Future[tuple[PackedAdapter, int]] | None = None
    failure: StoaError | None = None  # another rank could not lay it out
    forgotten: bool = False
    load_ns: int = 0  # reading and laying out, until somebody has been charged for it


class AdapterCache:
    """All methods are for the engine thread, except that `wakeup` is set by loader threads."""

    def __init__(
        self,
        pool: PagePool,
        kernels: Kernels,
        linears: list[Linear],
        keys: ModuleKeys,
        read: Callable[[AdapterRef], Pairs],
        *,
        host_bytes: int,
        wakeup: threading.Event,
        loaders: int = 1,
        elsewhere: Callable[[AdapterRef, int], Future[None]] | None = None,
    ) -> None:
        """`elsewhere`: has other ranks lay the adapter out from that page on, and says when all of them have, or could
        not. Until then it is not used and its pages are nobody else's."""
        self.pool = pool
        self.kernels = kernels
        self.linears = linears
        self.keys = keys
        self.read = read
        self.host_bytes = host_bytes
        self.wakeup = wakeup
        self.elsewhere = elsewhere
        self.loads = 0
        self.evictions = 0
        self._threads = ThreadPoolExecutor(loaders, thread_name_prefix="adapter-loader")
        self._reading: dict[str, Future[HostAdapter]] = {}
        self._host: OrderedDict[str, HostAdapter] = OrderedDict()
        self._resident: dict[str, Resident] = {}

    @property
    def num_resident(self) -> int:
        return len(self._resident)

    @property
    def num_host(self) -> int:
        return len(self._host)

    @property
    def held(self) -> list[str]:
        """Ids of adapters that need not be read again."""
        self._settle()
        return list({**self._host, **self._resident})

    @property
    def pages_held(self) -> int:
        return sum(r.num_pages for r in self._resident.values())

    def packed_bytes(self) -> list[int]:
        """Pool bytes of each adapter that is laid out."""
        return [r.packed.nbytes for r in self._resident.values() if r.packed is not None]

    def prefetch(self, ref: AdapterRef) -> None:
        """Starts reading the adapter into host memory unless it is on its way or there."""
        self._settle()
        known = self._resident.get(ref.id)
        if ref.id in self._host or ref.id in self._reading or (known and not known.forgotten):
            return
        future = self._threads.submit(self._read, ref)
        self._reading[ref.id] = future
        future.add_done_callback(lambda _: self.wakeup.set())

    def pin(self, ref: AdapterRef, clock: int) -> bool:
        """Reserves pool pages for the adapter and keeps it there until `unpin`.

        False: not yet possible (still being read, or no room: see `pages_wanted`). Raises the StoaError
        of a failed read. After True, wait for `packed` before use.
        """
        resident = self._resident.get(ref.id)
        if resident is not None and not resident.pins and self._is_settled(resident) and resident.failure:
            self._drop(ref.id)  # it may go well this time
            resident = None
        if resident is None:
            host = self._take_host(ref)
            if host is None:
                return False
            resident = self._place(ref, host)
            if resident is None:
                return False
        resident.pins += 1
        resident.last_use = clock
        return True

    def pages_wanted(self, ref: AdapterRef) -> int:
        """Pool pages that `pin` would need now: 0 when resident or not read yet."""
        host = self._host.get(ref.id)
        if ref.id in self._resident or host is None:
            return 0
        return self._pages(host)

    def packed(self, adapter_id: str) -> PackedAdapter | None:
        """The pinned adapter, or None while it is still being laid out. Raises the StoaError of another rank that cannot."""
        resident = self._resident[adapter_id]
        if self._is_settled(resident) and resident.failure is not None:
            raise resident.failure
        return resident.packed

    def first_page(self, adapter_id: str) -> int:
        """Of a pinned adapter. Other ranks know it by that."""
        return self._resident[adapter_id].first_page

    def share_of(self, adapter_id: str) -> float:
        """Pool bytes of a pinned adapter, divided by the number of its pins."""
        resident = self._resident[adapter_id]
        return resident.num_pages * self.pool.page_bytes / resident.pins

    def take_load_ns(self, adapter_id: str) -> int:
        """What bringing the adapter here took, for the one who is charged for it; 0 afterwards."""
        resident = self._resident[adapter_id]
        load_ns, resident.load_ns = resident.load_ns, 0
        return load_ns

    def unpin(self, adapter_id: str, clock: int) -> None:
        resident = self._resident[adapter_id]
        assert resident.pins > 0, "adapter unpinned twice"
        resident.pins -= 1
        resident.last_use = clock
        if not resident.pins and self._is_settled(resident) and (resident.forgotten or resident.failure):
            self._drop(adapter_id)

    def oldest_idle(self) -> tuple[int, str] | None:
        """(last use, id) of the longest unused adapter that may be evicted."""
        idle = [(r.last_use, i) for i, r in self._resident.items() if not r.pins and self._is_settled(r)]
        return min(idle, default=None)

    def pages_of(self, adapter_id: str) -> int:
        return self._resident[adapter_id].num_pages

    def idle_pages(self) -> int:
        """Pool pages that evicting every idle adapter would free."""
        return sum(r.num_pages for r in self._resident.values() if not r.pins and self._is_settled(r))

    def evict(self, adapter_id: str) -> None:
        self.evictions += 1
        self._drop(adapter_id)

    def forget(self, adapter_id: str) -> None:
        """Drops the adapter from memory; from the pool once nothing uses it."""
        self._settle()
        self._host.pop(adapter_id, None)
        resident = self._resident.get(adapter_id)
        if resident is None:
            return
        resident.forgotten = True
        if not resident.pins and self._is_settled(resident):
            self._drop(adapter_id)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _settle(self) -> None:
        """Takes in what has been read, also what nobody asks for any more. A failed read is forgotten: whoever
        still waits for it has it read again and is told then."""
        for adapter_id, reading in list(self._reading.items()):
            if not reading.done():
                continue
            if reading.exception() is None:
                self._take_read(adapter_id)
            else:
                del self._reading[adapter_id]

    def _take_read(self, adapter_id: str) -> None:
        """Moves a finished read to the host cache. Raises the StoaError of a failed one."""
        reading = self._reading.pop(adapter_id)
        self._host[adapter_id] = reading.result()
        self.loads += 1
        self._trim_host(keep=adapter_id)

    def _take_host(self, ref: AdapterRef) -> HostAdapter | None:
        reading = self._reading.get(ref.id)
        if reading is not None:
            if not reading.done():
                return None
            self._take_read(ref.id)
        host = self._host.get(ref.id)
        if host is None:
            self.prefetch(ref)
            return None
        self._host.move_to_end(ref.id)
        return host

    def _trim_host(self, keep: str) -> None:
        total = sum(h.host_bytes for h in self._host.values())
        for adapter_id in list(self._host):
            if total <= self.host_bytes:
                return
            if adapter_id != keep:
                total -= self._host.pop(adapter_id).host_bytes

    def _pages(self, host: HostAdapter) -> int:
        return -(-host.pool_bytes // self.pool.page_bytes)

    def _is_settled(self, resident: Resident) -> bool:
        """Nobody writes to its pages any more: it is laid out, or could not be."""
        if resident.laying_out is not None and resident.laying_out.done():
            laying_out, resident.laying_out = resident.laying_out, None
            try:
                resident.packed, took_ns = laying_out.result()
                resident.load_ns += took_ns
            except StoaError as error:
                resident.failure = error
        return resident.laying_out is None

    def _place(self, ref: AdapterRef, host: HostAdapter) -> Resident | None:
        pages = self._pages(host)
        if pages > self.pool.num_pages:
            raise OutOfMemory(
                f"the adapter needs {host.pool_bytes} bytes, the pool holds "
                f"{self.pool.num_pages * self.pool.page_bytes}; raise pool_gib"
            )
        first = self.pool.take_run(pages)
        if first is None:
            return None
        dst = self.pool.run_bytes(first, host.pool_bytes)
        future = self._threads.submit(self._lay_out, ref, host, first, dst)
        future.add_done_callback(lambda _: self.wakeup.set())
        resident = Resident(first, pages, laying_out=future, load_ns=host.read_ns)
        host.read_ns = 0  # from now on it is in memory
        self._resident[ref.id] = resident
        return resident

    def _lay_out(
        self, ref: AdapterRef, host: HostAdapter, first_page: int, dst: Tensor
    ) -> tuple[PackedAdapter, int]:
        started = time.perf_counter_ns()
        others = self.elsewhere(ref, first_page) if self.elsewhere is not None else None
        packed = host.lay_out(dst)
        if others is not None:
            others.result()
        return packed, time.perf_counter_ns() - started

    def _drop(self, adapter_id: str) -> None:
        resident = self._resident.pop(adapter_id)
        self.pool.give_back(resident.first_page, resident.num_pages)

    def _read(self, ref: AdapterRef) -> HostAdapter:
        started = time.perf_counter_ns()
        host = stage(self.kernels, self.linears, self.keys, self.read(ref))
        host.read_ns = time.perf_counter_ns() - started
        return host
