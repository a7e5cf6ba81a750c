"""Pages: the bytes behind KV blocks and adapters, and which of them are free."""

from __future__ import annotations

import contextlib
import heapq
import mmap

import numpy as np
import torch
from torch import Tensor

from stoa.errors import OutOfMemory


class PagePool:
    """`num_pages` pages of `page_bytes`. Single pages come from the low end, runs from the high end.

    Host memory is reserved, not touched: a page costs physical memory once it is first written. A GPU's is taken.
    """

    def __init__(
        self,
        num_pages: int,
        page_bytes: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        if num_pages < 1:
            raise OutOfMemory(f"the pool holds no page of {page_bytes} bytes; raise pool_gib")
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        self.arena = _reserve(num_pages * page_bytes, device)
        self._free = np.ones(num_pages, dtype=bool)
        self._lowest = list(range(num_pages))  # heap; may name pages that a run has taken since
        self.num_free = num_pages

    def take_page(self) -> int | None:
        """The lowest free page, or None."""
        while self._lowest:
            page = heapq.heappop(self._lowest)
            if self._free[page]:
                self._free[page] = False
                self.num_free -= 1
                return page
        return None

    def take_run(self, length: int) -> int | None:
        """First page of the highest run of `length` adjacent free pages, or None."""
        if length > self.num_free:
            return None
        taken = np.flatnonzero(~self._free)
        edges = np.concatenate(([-1], taken, [self.num_pages]))
        gaps = np.flatnonzero(np.diff(edges) > length)
        if not len(gaps):
            return None
        first = int(edges[gaps[-1] + 1]) - length
        self._free[first : first + length] = False
        self.num_free -= length
        return first

    def give_back(self, first: int, length: int = 1) -> None:
        assert not self._free[first : first + length].any(), "page freed twice"
        self._free[first : first + length] = True
        self.num_free += length
        for page in range(first, first + length):
            heapq.heappush(self._lowest, page)
        if len(self._lowest) > 4 * self.num_pages:
            self._lowest = np.flatnonzero(self._free).tolist()

    def run_bytes(self, first: int, nbytes: int) -> Tensor:
        """uint8 [nbytes] view that starts at page `first`."""
        start = first * self.page_bytes
        return self.arena[start : start + nbytes]


def _reserve(nbytes: int, device: torch.device) -> Tensor:
    """uint8 [nbytes]. Raises OutOfMemory."""
    try:
        if device.type != "cpu":
            return torch.empty(nbytes, dtype=torch.uint8, device=device)
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, torch.OutOfMemoryError):
        raise OutOfMemory(
            f"a pool of {nbytes} bytes cannot be had on {device}; lower pool_gib", param="pool_gib"
        ) from None
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
