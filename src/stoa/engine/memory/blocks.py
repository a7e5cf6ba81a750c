"""KV blocks: who holds which page, and which filled pages can serve another sequence.

A page is in exactly one state:

    free ──take──▶ held (ref_count > 0) ──release──▶ free           (content not worth keeping)
                        ▲                   └──────▶ cached (ref_count 0, has a hash)
                        └────── match ◀──────────────┘   └─evict─▶ free

The prefix cache is a hash chain: a block's hash covers its tokens and the hash before it; the chain starts
from a salt of (project, adapter content), so neither can ever meet the other's pages.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from stoa.engine.memory.pool import PagePool


def chain_salt(project: str, adapter_id: str | None) -> bytes:
    return hashlib.blake2b(f"{project}\0{adapter_id or ''}".encode(), digest_size=16).digest()


def chain_next(previous: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block given the hash of the block before it (or the salt)."""
    return hashlib.blake2b(
        np.asarray(tokens, dtype=np.int32).tobytes(), digest_size=16, key=previous
    ).digest()


class BlockTable:
    """Reference counts of KV pages and the prefix cache over them."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._refs: dict[int, int] = {}  # page -> holders; absent = not a KV page or cached
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, int] = OrderedDict()  # page -> clock of last use, oldest first

    @property
    def num_held(self) -> int:
        return len(self._refs)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def share_of(self, pages: Sequence[int]) -> float:
        """Pages, each divided by the number of its holders."""
        return sum(1 / self._refs[page] for page in pages)

    def take(self) -> int | None:
        """A fresh page with one holder, or None when no page is free."""
        page = self.pool.take_page()
        if page is not None:
            self._refs[page] = 1
        return page

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks of the chain are here."""
        count = 0
        for block_hash in hashes:
            if block_hash not in self._page_of:
                break
            count += 1
        return count

    def hold(self, hashes: Sequence[bytes]) -> list[int]:
        """Pages of blocks that `match` found, each with one more holder."""
        pages = [self._page_of[h] for h in hashes]
        self.share(pages)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            self._cached.pop(page, None)
            self._refs[page] = self._refs.get(page, 0) + 1

    def release(self, pages: Sequence[int], clock: int) -> None:
        """One holder less. Last blocks first: the head of a chain outlives its tail."""
        for page in reversed(pages):
            left = self._refs[page] - 1
            if left:
                self._refs[page] = left
                continue
            del self._refs[page]
            if page in self._hash_of:
                self._cached[page] = clock
            else:
                self.pool.give_back(page)

    def publish(self, page: int, block_hash: bytes) -> None:
        """The page is full and computed; sequences with the same chain may hold it from now on."""
        if block_hash not in self._page_of:
            self._page_of[block_hash] = page
            self._hash_of[page] = block_hash

    def oldest(self) -> int | None:
        """Clock of the longest unused cached page."""
        return next(iter(self._cached.values()), None)

    def evict(self) -> None:
        """Forgets the longest unused cached page; its page becomes free."""
        page, _ = self._cached.popitem(last=False)
        del self._page_of[self._hash_of.pop(page)]
        self.pool.give_back(page)
