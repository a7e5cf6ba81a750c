"""What the rows of a step cost, and how long steps take.

Work is counted in rows: one is what a row of a prompt costs on its way through the layers. What must be read for a
sequence alone (its keys and values, its adapter) counts by bytes, at so many operations that the machine could
do meanwhile. The sum over a step's sequences divides its time among them; a fit of seconds over work foretells it.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoa.engine.model.config import ModelConfig

# Operations in the time of reading a byte: two cores with AVX-512-BF16 do 420 GFLOP/s at 35 GB/s, an H200 990 TFLOP/s at
# 4.8 TB/s; others of their kind are not far from it.
OPS_PER_BYTE = {"cpu": 12.0, "cuda": 200.0}
_FORGET = 0.98  # weight of the past in the fit, per step
_PRIOR_ROWS = 16.0  # until steps have varied, one is taken to cost as much as this many rows, and its rows


@dataclass(frozen=True)
class RowCost:
    """Of one model, in rows."""

    head: float  # of a row that is sampled: its way through the output head
    attend: float  # of a row for each token of its context
    byte: float  # of a byte read
    adapter_byte: float  # of a row for each byte of its adapter
    kv_token_bytes: float  # keys and values of a token, all layers

    def work(self, rows: int, sampled: int, context: int, adapter_bytes: float, sharers: int = 1) -> float:
        """A sequence's part of a step. `context`: tokens behind its last row; `sharers`: sequences of the step that
        use its adapter."""
        read = context * self.kv_token_bytes + adapter_bytes / sharers
        each = 1.0 + context * self.attend + adapter_bytes * self.adapter_byte
        return rows * each + sampled * self.head + read * self.byte


def row_cost(model: ModelConfig, page_bytes: int, block_size: int, device: str = "cpu") -> RowCost:
    per_layer = sum(n * k for name, (n, k) in model.linear_shapes().items() if name != "lm_head")
    layers = per_layer * model.num_layers  # multiply-adds of a row
    return RowCost(
        head=model.vocab_size * model.hidden_size / layers,
        attend=2 * model.num_layers * model.num_heads * model.head_dim / layers,
        byte=OPS_PER_BYTE[device] / (2 * layers),
        adapter_byte=1 / (2 * layers),  # two bytes a multiply-add
        kv_token_bytes=page_bytes / block_size,
    )


class StepTime:
    """Seconds of a step as fixed + per_work · work: least squares with exponential forgetting."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, work: float, seconds: float) -> None:
        self._n = self._n * _FORGET + 1
        self._x = self._x * _FORGET + work
        self._y = self._y * _FORGET + seconds
        self._xx = self._xx * _FORGET + work * work
        self._xy = self._xy * _FORGET + work * seconds

    def fit(self) -> tuple[float, float]:
        """(fixed, per_work), in seconds; (0, 0) before the first step."""
        spread = self._n * self._xx - self._x**2
        if spread <= 1e-3 * self._n * self._xx:
            mean = self._y / (self._x + _PRIOR_ROWS * self._n) if self._n else 0.0
            return _PRIOR_ROWS * mean, mean
        per_work = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        return max(0.0, (self._y - per_work * self._x) / self._n), per_work

    def work_share(self, work: float) -> float:
        """Share of a step's time that its work costs; the rest is the same for any."""
        fixed, per_work = self.fit()
        total = fixed + per_work * work
        if not total:
            return 1.0 if self._n else work / (work + _PRIOR_ROWS)
        return per_work * work / total
