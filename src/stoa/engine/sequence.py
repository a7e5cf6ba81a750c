"""One choice of one request on its way through the engine.

    tokens:  [ prompt ───────────── | output ────────── ]     its first `num_resumed` were made by another engine
             [ computed ────────────────────── | todo   ]     keys and values of `computed` lie in `pages`

There is no prefill phase and no decode phase: each step computes some of `todo`, and a sequence whose
`todo` reaches zero gets its next token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stoa.engine.memory.blocks import chain_next, chain_salt
from stoa.engine.request import GenerationRequest
from stoa.errors import InvalidRequest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from stoa.engine.accounting import Book
    from stoa.engine.grammar import GrammarState
    from stoa.engine.speculation import PromptLookup
    from stoa.engine.text import TextStream
    from stoa.errors import StoaError

_CLASS_RANK = {"interactive": 0, "batch": 1}


class Sequence:
    """State of one choice. Mutated by the scheduler (pages, pins) and the engine (tokens)."""

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        arrival: int,
        seed: int,
        *,
        block_size: int,
        text: TextStream | None,
        book: Book,
        parent: Sequence | None = None,
    ) -> None:
        self.request = request
        self.project = request.project
        self.book = book  # what the request has used, shared by its sequences
        self.prepaid = 0.0  # charged at admission for work that is still to come
        self.held_since_ns = 0  # since when its memory has not been booked; 0: it holds none
        self.params = request.params
        self.index = index
        # What has been promised elsewhere goes before what has come here.
        self.priority = (_CLASS_RANK[request.service_class], 0 if request.so_far else arrival, index)
        self.seed = seed
        self.block_size = block_size
        self.text = text
        self.grammar: GrammarState | None = None
        self.compiling: Future[GrammarState] | None = None  # the grammar, while it is being made
        self.failure: StoaError | None = None  # why the sequence cannot go on, found while sampling
        self.parent = parent  # set while the prompt is being computed by another choice of the request

        so_far = (request.so_far[index] if request.so_far else None) or []
        self.tokens: list[int] = [*request.prompt_token_ids, *so_far]
        self.num_prompt = len(request.prompt_token_ids)
        self.num_resumed = len(so_far)  # output tokens that another engine has made
        self.num_computed = 0
        self.num_cached = 0  # prompt tokens found in the prefix cache at first admission
        self.pages: list[int] = []
        self.page_ids: NDArray[np.int32] = np.zeros(8, dtype=np.int32)  # `pages` as kernels want them
        self.num_published = 0  # leading pages offered to the prefix cache
        self.drafts: list[int] = []  # guesses that the next step checks, after `todo`
        self.lookup: PromptLookup | None = None
        self.pinned = False  # holds a pin on its adapter
        self.done = False
        self.due_s = math.inf  # when its first token should be there, by the scheduler's clock
        self.pooled: NDArray[np.float64] | None = None  # running sum of hidden states, when embedding
        salt = chain_salt(request.project, request.adapter.id if request.adapter else None)
        self._chain: list[bytes] = [salt]

    def grammar_ready(self) -> bool:
        """Is there none to wait for? Raises InvalidRequest if it cannot be used."""
        if self.compiling is None:
            return True
        if not self.compiling.done():
            return False
        self.grammar, self.compiling = self.compiling.result().copy(), None
        if not all(self.grammar.accept(token) for token in self.tokens[self.num_prompt :]):
            raise InvalidRequest("so_far does not follow the output format", param="so_far")
        return True

    @property
    def adapter_id(self) -> str | None:
        return self.request.adapter.id if self.request.adapter else None

    @property
    def todo(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    def pages_for(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.block_size)

    def add_page(self, page: int) -> None:
        n = len(self.pages)
        if n == len(self.page_ids):
            self.page_ids = np.concatenate((self.page_ids, np.zeros(n, dtype=np.int32)))
        self.page_ids[n] = page
        self.pages.append(page)

    def drop_pages(self) -> list[int]:
        """Forgets what was computed and returns the pages to release."""
        pages, self.pages = self.pages, []
        self.pooled = None
        self.drafts = []
        self.num_computed = 0
        self.num_published = 0
        return pages

    def block_hashes(self, count: int) -> list[bytes]:
        """Hash chain of the first `count` full blocks."""
        bs = self.block_size
        while len(self._chain) <= count:
            i = len(self._chain) - 1
            self._chain.append(chain_next(self._chain[-1], self.tokens[i * bs : (i + 1) * bs]))
        return self._chain[1 : count + 1]
