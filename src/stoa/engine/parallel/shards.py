"""Which part of each tensor a rank holds.

    column-parallel   q, k, v, gate, up, lm_head   rows of the weight: ranks' outputs lie side by side
    row-parallel      o, down                      columns of the weight: ranks' outputs are summed

An adapter's pair follows its layer: of a column-parallel one A is whole and B is cut by rows, of a row-parallel one A
is cut by columns and B is whole. Embedding and norms are whole on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from stoa.engine.config import BITS, EngineConfig
from stoa.engine.kernels.interface import LoraPair
from stoa.engine.kernels.quantize import GROUP
from stoa.engine.model.config import ModelConfig
from stoa.errors import ConfigError

_ROW_PARALLEL = ("o_proj", "down_proj")
K = TypeVar("K")


@dataclass(frozen=True)
class Cut:
    """Of a weight [out, in]."""

    rows: slice
    columns: slice


class Shards:
    """What rank `rank` of `size` holds of a model that `check_size` has let pass. `local`: the model as that rank alone
    sees it, with the heads, inner columns and output columns that are its own."""

    def __init__(self, model: ModelConfig, rank: int = 0, size: int = 1) -> None:
        self.model = model
        self.rank = rank
        self.size = size
        self.local = replace(
            model,
            num_heads=model.num_heads // size,
            num_kv_heads=model.num_kv_heads // size,
            intermediate_size=model.intermediate_size // size,
            vocab_size=self.widths()[rank],
        )

    def widths(self) -> list[int]:
        """Output columns of each rank. The first ranks have one more where they are not equally many, so no rank needs
        more memory than rank 0."""
        return [_part(self.model.vocab_size, rank, self.size)[1] for rank in range(self.size)]

    def cut(self, module: str) -> Cut:
        n, k = self.model.linear_shapes()[module]
        if module in _ROW_PARALLEL:
            return Cut(slice(0, n), self._mine(k))
        return Cut(self._mine(n), slice(0, k))

    def adds_bias(self, module: str) -> bool:
        """A bias of what is summed must be in one of the terms only."""
        return self.rank == 0 or module not in _ROW_PARALLEL

    def pair(self, module: str, pair: LoraPair) -> LoraPair:
        if self.size == 1:
            return pair
        cut = self.cut(module)
        if module in _ROW_PARALLEL:
            return LoraPair(pair.a[:, cut.columns].contiguous(), pair.b, pair.scale)
        return LoraPair(pair.a, pair.b[cut.rows], pair.scale)

    def pairs(self, pairs: Mapping[tuple[K, str], LoraPair]) -> dict[tuple[K, str], LoraPair]:
        return {key: self.pair(key[1], pair) for key, pair in pairs.items()}

    def _mine(self, n: int) -> slice:
        first, count = _part(n, self.rank, self.size)
        return slice(first, first + count)


def check_size(config: EngineConfig, model: ModelConfig) -> None:
    """Raises ConfigError, which names the sizes that would be accepted, unless the model can be cut into that many."""
    size = config.tensor_parallel
    accepted = [n for n in range(1, model.num_kv_heads + 1) if _divides(n, model, config)]
    if size in accepted:
        return
    quantized = f", quantize {config.quantize!r} in groups of {GROUP}" if config.quantize != "none" else ""
    raise ConfigError(
        f"tensor_parallel is {size}; accepted for this model ({model.num_heads} heads, {model.num_kv_heads} KV "
        f"heads, intermediate_size {model.intermediate_size}{quantized}): {', '.join(map(str, accepted))}",
        param="tensor_parallel",
    )


def _divides(size: int, model: ModelConfig, config: EngineConfig) -> bool:
    if size == 1:
        return True
    if model.num_heads % size or model.num_kv_heads % size or model.intermediate_size % size:
        return False
    if model.vocab_size < size:
        return False
    # A group of inputs has one scale: a shard must begin where a group does, or its numbers would be others.
    quantized = BITS[config.quantize] != 16
    return not quantized or not (model.q_size // size % GROUP or model.intermediate_size // size % GROUP)


def _part(n: int, rank: int, size: int) -> tuple[int, int]:
    """First and count of the rank's part of n."""
    each, more = divmod(n, size)
    return rank * each + min(rank, more), each + (rank < more)
