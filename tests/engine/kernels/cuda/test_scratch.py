"""Memory between kernels: what graphs may lean on, and when they may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stoa.engine.kernels.cuda.device import find_gpu
from stoa.engine.kernels.cuda.program import most_tiles
from stoa.engine.kernels.cuda.scratch import Scratch


def test_memory_moves_only_when_it_grows() -> None:
    """Smaller steps find it where it was; of each width there is one piece, so that many columns of few rows stay few."""
    scratch = Scratch(find_gpu())
    first = scratch.delta(64, 100)
    moves = scratch.moves
    assert scratch.delta(10, 100).data_ptr() == first.data_ptr()
    assert scratch.moves == moves
    scratch.delta(2, 5000)
    assert scratch.moves == moves + 1
    assert scratch.delta(64, 100).data_ptr() == first.data_ptr()


def test_memory_that_is_not_to_be_had_voids_graphs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there has been given up by then."""
    scratch = Scratch(find_gpu())
    scratch.delta(4, 100)
    moves = scratch.moves

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            scratch.delta(8, 100)
    assert scratch.moves > moves
    assert scratch.delta(8, 100).shape == (8, 100)


def test_adapters_count_from_the_next_step_on() -> None:
    """What a loader thread announces changes nothing in the middle of a step."""
    scratch = Scratch(find_gpu())
    scratch.expect([[16, 0, 16], [0], [100, 100]])
    assert not scratch.adapted(0)
    scratch.settle()
    assert [scratch.adapted(i) for i in range(3)] == [True, False, True]
    assert scratch.shrunk(2, 3).shape == (2, 3, 256)
    changes = scratch.changes
    scratch.expect([[1, 1, 1], [0], [8, 8]])
    scratch.settle()
    assert scratch.changes == changes
    scratch.forget_adapters()
    assert not scratch.adapted(0)


@pytest.mark.parametrize("per_tile", [1, 5, 16])
def test_no_step_has_more_tiles_than_its_graph_has_room_for(per_tile: int) -> None:
    """However its rows fall to its sequences."""
    rng = torch.Generator().manual_seed(per_tile)
    for _ in range(200):
        seqs = int(torch.randint(1, 30, (1,), generator=rng))
        counts = torch.randint(1, 60, (seqs,), generator=rng)
        tiles = int((-(-counts // per_tile)).sum())
        assert tiles <= most_tiles(int(counts.sum()), seqs, per_tile)
