"""Speculative decoding by prompt lookup: what followed the last few tokens before is guessed to follow again.

Guesses run as extra rows of the step. A token is a function of its logits and of (seed, position), and logits do
not depend on company, so a guess is right exactly when it is the token that would have come anyway: speculation
changes when tokens come, never which, at any temperature and with any adapters.

It is used where it pays. With step time a + b rows, n sequences at one row each give n / (a + b n) tokens a
second; k more rows with hit rate p give (n + p k) / (a + b n + b k), which is more if and only if
p > b n / (a + b n), the share of the step that rows cost. A row that is sampled also goes through the output head
and counts for more than a prompt's.
"""

from __future__ import annotations

from collections.abc import Iterable

from stoa.engine.cost import StepTime
from stoa.engine.sequence import Sequence

MAX_DRAFTS = 4
_GRAM = 3  # tokens that must repeat
_MARGIN = 1.5  # the fit leans on prompts, whose rows cost less than rows of many sequences


class PromptLookup:
    """One sequence's n-grams, and how often its guesses have been right lately."""

    def __init__(self) -> None:
        self.hit_rate = 0.5
        self._after: dict[tuple[int, ...], int] = {}  # gram -> index of the token that followed it last
        self._indexed = 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        for end in range(max(self._indexed, _GRAM), len(tokens)):
            self._after[tuple(tokens[end - _GRAM : end])] = end
        self._indexed = len(tokens)
        start = self._after.get(tuple(tokens[-_GRAM:]))
        return [] if start is None else tokens[start : start + most]

    def judge(self, drafted: int, right: int) -> None:
        self.hit_rate += 0.1 * drafted * (right / drafted - self.hit_rate)

    def rest(self) -> None:
        """Not tried this time: confidence returns slowly, so that it is tried again some day."""
        self.hit_rate += 0.005 * (0.5 - self.hit_rate)


class Speculator:
    """Sets `drafts` of sequences before a step is scheduled."""

    def __init__(self, max_model_len: int, times: StepTime, head: float) -> None:
        """`head`: what the output head costs a row, in passes through the layers."""
        self.times = times
        self.head = head
        self.max_model_len = max_model_len
        self.drafted = 0
        self.accepted = 0

    def draft(self, running: Iterable[Sequence]) -> None:
        decoding = [s for s in running if s.todo == 1 and s.request.pooling is None]
        share = self.times.work_share(len(decoding) * (1 + self.head))
        for seq in decoding:
            seq.drafts = []
            if not _may_draft(seq):
                continue
            room = min(
                MAX_DRAFTS,
                seq.params.max_tokens - seq.num_output - 1,
                self.max_model_len - len(seq.tokens) - 1,
            )
            if room < 1:
                continue
            if seq.lookup is None:
                seq.lookup = PromptLookup()
            if seq.lookup.hit_rate > _MARGIN * share:
                seq.drafts = seq.lookup.propose(seq.tokens, room)
            else:
                seq.lookup.rest()

    def judge(self, seq: Sequence, drafted: int, right: int) -> None:
        assert seq.lookup is not None
        self.drafted += drafted
        self.accepted += right
        seq.lookup.judge(drafted, right)


def _may_draft(seq: Sequence) -> bool:
    """Only where a row's distribution depends on the tokens alone, not on what the step has yet to decide."""
    p = seq.params
    return seq.grammar is None and not p.has_penalty and seq.num_output >= p.min_tokens
