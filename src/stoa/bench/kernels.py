"""`stoa bench kernels`: where the time of a decode step goes on a GPU.

A model's decode step is captured as a CUDA graph again and again, each time with the kernels of one kind only, on the very
weights, adapters and pages of the whole step: layer after layer has its own, so nothing is left in a cache but what a
step leaves there too. Each kind's time is held against the bytes that it must read. Looking tokens up in the embedding
table is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stoa.bench.gpu import ceilings, device_seconds, floor_s, forget_memory, gpu_facts, wait
from stoa.bench.lora import tuned
from stoa.bench.machine import machine_facts
from stoa.bench.synthetic import SHAPES, linear_shapes
from stoa.demo import BASE_DIR
from stoa.engine.config import BITS, Quantize
from stoa.engine.kernels.cuda import attention, draw, load_cuda
from stoa.engine.kernels.cuda.kernels import CudaKernels
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.linear import CudaLinear
from stoa.engine.kernels.cuda.program import capture
from stoa.engine.kernels.cuda.step import DeviceRows, upload_rows
from stoa.engine.kernels.interface import AttentionRows, DrawRow, LoraPair, PackedAdapter
from stoa.engine.model.decoder import GROUPS
from stoa.errors import ConfigError

BLOCK = 16
# kind -> files whose kernels it is; "head" is the output head's linear
KINDS: dict[str, tuple[str, ...]] = {
    "linears": ("linear", "quantized"),
    "head": ("linear", "quantized"),
    "lora": ("lora",),
    "attention": ("attention",),
    "rope and pages": ("rope",),
    "norms and gates": ("elementwise",),
    "tokens": ("draw",),
}
_LORA_TURNS = 4  # groups of adapters that take turns where one alone might stay in the cache
_SCALE = 0.02


def run(
    model: str,
    *,
    cache: Path,
    batches: Sequence[int] = (1, 32, 64),
    context: int = 192,
    rank: int = 16,
    repeats: int = 20,
    quantize: Quantize = "none",
    device: str = "cuda",
) -> dict[str, Any]:
    """`model`: a folder, of which only config.json is read, or a shape of `SHAPES`; weights are random."""
    if device != "cuda":
        raise ConfigError(f"device is {device!r}; accepted for this benchmark: cuda", param="device")
    if min(*batches, context, rank, repeats) < 1:
        raise ConfigError("batch, context, rank and repeats must be 1 or above")
    facts, rates = gpu_facts(), ceilings()
    folder = tuned(cache, device)
    kernels = load_cuda(torch.bfloat16, Path(folder))
    step = Step(kernels, _config(model), BITS[quantize], rank, max(batches), context)
    rows = [row for batch in batches for row in _rows(step, batch, repeats, rates)]
    report = {
        "machine": machine_facts() | facts | rates,
        "model": {"name": model, "quantize": quantize, "kernels": kernels.name, "rank": rank},
        "workload": {"context": context, "repeats": repeats},
        "adapter_mb": round(step.adapter_bytes / 1e6, 2),
        "weights_gb": round(sum(w.nbytes for w in step.linears) / 1e9, 3),
        "rows": rows,
    }
    del step
    forget_memory(kernels.device)
    return report


def _config(model: str) -> dict[str, Any]:
    if model in SHAPES:
        return SHAPES[model]
    file = (BASE_DIR if model == "demo" else Path(model)) / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"model {model!r} is neither a folder with a config.json nor one of {', '.join(SHAPES)}"
        )
    config: dict[str, Any] = json.loads(file.read_text())
    return config | {
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    }


# -- a decode step


class Step:
    """Weights, adapters, pages and activations of a model's decode step, all random."""

    def __init__(
        self, kernels: CudaKernels, config: dict[str, Any], bits: int, rank: int, most: int, context: int
    ) -> None:
        self.kernels, self.config, self.rank, self.most, self.context = kernels, config, rank, most, context
        self.layers = int(config["num_hidden_layers"])
        self.heads, self.kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self.head_dim = int(config["head_dim"])
        self.linears = self._make_linears(bits)
        self.layout = kernels.kv_layout(self.layers, self.kv_heads, self.head_dim, BLOCK)
        self.blocks = -(-context // BLOCK)
        pages = torch.empty(
            most * self.blocks * self.layout.page_bytes, dtype=torch.uint8, device=kernels.device
        )
        pages.view(kernels.dtype).normal_()
        self.pages = pages
        self.adapter_bytes, self.adapters, self._pool = self._make_adapters()
        self._make_activations(most)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.kernels.dtype, device=self.kernels.device) * _SCALE

    def _make_linears(self, bits: int) -> list[CudaLinear]:
        """Of all layers, then the output head."""
        shapes = linear_shapes(self.config)
        made = []
        for _ in range(self.layers):
            for group in GROUPS:
                weights = [self._random(*shapes[module]) for module in group]
                made.append(self.kernels.pack_linear(weights, [None] * len(group), bits))
        head = self._random(int(self.config["vocab_size"]), int(self.config["hidden_size"]))
        return [*made, self.kernels.pack_linear([head], [None], max(bits, 8))]

    def _make_adapters(self) -> tuple[int, list[PackedAdapter], Tensor]:
        """As many as the largest batch has rows, and a few groups more for a batch of one; none for the output head."""
        kernels = self.kernels
        ranks = [[self.rank] * len(w.splits) for w in self.linears[:-1]] + [[0]]
        each = -(-kernels.adapter_nbytes(self.linears, ranks) // 64) * 64
        count = max(self.most, _LORA_TURNS)
        pool = torch.empty(count * each, dtype=torch.uint8, device=kernels.device)
        pairs: list[list[LoraPair | None]] = [
            [
                LoraPair(self._random(self.rank, w.k).cpu(), self._random(n, self.rank).cpu(), 2.0)
                for n in w.splits
            ]
            for w in self.linears[:-1]
        ]
        first = kernels.stage_adapter(self.linears, [*pairs, [None]])(pool[:each])
        made = type(first)
        for i in range(1, count):  # where an adapter lies in the pool is not written in it
            pool[i * each : (i + 1) * each].copy_(pool[:each])
        return each, [made(pool.data_ptr() + i * each, each) for i in range(count)], pool

    def _make_activations(self, rows: int) -> None:
        c, device = self.config, self.kernels.device
        hidden, inner = int(c["hidden_size"]), int(c["intermediate_size"])
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.residual = torch.randn(rows, hidden, device=device)
        self.logits = torch.empty(rows, int(c["vocab_size"]), device=device)
        self.norm = torch.ones(hidden, device=device)
        self.rope = torch.randn(self.context, self.head_dim, device=device)
        self.x, self.qkv, self.q, self.attended = (
            self._random(rows, width) for width in (hidden, q + 2 * kv, q, q)
        )
        self.gate_up, self.gated = self._random(rows, 2 * inner), self._random(rows, inner)

    def rows(self, batch: int) -> DeviceRows:
        """Each sequence's last token."""
        last = self.context - 1
        table = np.arange(batch * self.blocks, dtype=np.int32).reshape(batch, self.blocks)
        rows = AttentionRows(
            query_start=np.arange(batch + 1, dtype=np.int32),
            context_len=np.full(batch, self.context, dtype=np.int32),
            block_table=table,
            positions=np.full(batch, last, dtype=np.int32),
            slots=table[:, last // BLOCK].astype(np.int64) * BLOCK + last % BLOCK,
        )
        per_tile = attention.tile_rows(self.heads // self.kv_heads)
        return upload_rows(rows, per_tile, BLOCK, self.kernels.device)

    def run_layers(self, batch: int, lora: Any, rows: DeviceRows) -> None:
        """As `Decoder` runs them."""
        k, n, scale = self.kernels, batch, self.head_dim**-0.5
        residual, x = self.residual[:n], self.x[:n]
        for layer in range(self.layers):
            at = layer * len(GROUPS)
            qkv, o, gate_up, down = self.linears[at : at + len(GROUPS)]
            k.rms_norm(residual, self.norm, 1e-5, x)
            k.linear(x, qkv, self.qkv[:n], lora=lora, index=at)
            k.rope_append(self.qkv[:n], self.q[:n], self.rope, self.pages, self.layout, layer, rows)
            k.attention(self.q[:n], self.attended[:n], self.pages, self.layout, layer, rows, scale=scale)
            k.linear(self.attended[:n], o, residual, lora=lora, index=at + 1, accumulate=True)
            k.rms_norm(residual, self.norm, 1e-5, x)
            k.linear(x, gate_up, self.gate_up[:n], lora=lora, index=at + 2)
            k.silu_mul(self.gate_up[:n], self.gated[:n])
            k.linear(self.gated[:n], down, residual, lora=lora, index=at + 3, accumulate=True)
        k.rms_norm(residual, self.norm, 1e-5, x)

    def run_head(self, batch: int) -> None:
        self.kernels.linear(self.x[:batch], self.linears[-1], self.logits[:batch])

    def run_draw(self, batch: int, values: Tensor) -> None:
        draw.draw_tokens(self.kernels.launch, self.logits[:batch], values)


# -- kinds of kernels


@dataclass(frozen=True)
class Kind:
    """What is captured together, and what of it must be read."""

    name: str
    files: Collection[str]
    nbytes: float  # 0: nothing to speak of
    operations: float
    lora: bool  # are adapters in use?
    layers: bool = True
    head: bool = False


def kinds_of(step: Step, batch: int) -> list[Kind]:
    weights = sum(w.nbytes for w in step.linears[:-1])
    products = sum(w.k * w.n for w in step.linears[:-1])
    head, adapters = step.linears[-1], batch * step.adapter_bytes
    pages = batch * step.context * step.layout.page_bytes / BLOCK
    attend = 4 * batch * step.context * step.layers * step.heads * step.head_dim
    nbytes = {"linears": weights, "head": head.nbytes, "lora": adapters, "attention": pages}
    operations = {
        "linears": 2 * batch * products, "head": 2 * batch * head.k * head.n,
        "lora": adapters, "attention": attend,  # two bytes a multiply-add
    }  # fmt: skip
    kinds = [
        Kind(name, files, nbytes.get(name, 0), operations.get(name, 0), lora=name == "lora",
             layers=name not in ("head", "tokens"), head=name in ("head", "tokens"))
        for name, files in KINDS.items()
    ]  # fmt: skip
    everything = {file for files in KINDS.values() for file in files}
    base, base_ops = weights + head.nbytes + pages, sum(operations.values()) - adapters
    return [
        *kinds,
        Kind("step, base", everything, base, base_ops, lora=False, head=True),
        Kind("step, distinct", everything, base + adapters, base_ops + adapters, lora=True, head=True),
    ]


def _rows(step: Step, batch: int, repeats: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    _warm(step, batch)
    rows = []
    for kind in kinds_of(step, batch):
        turns = _LORA_TURNS if kind.name == "lora" and batch < len(step.adapters) else 1
        seconds = _seconds(step, batch, kind, turns, repeats)
        rows.append(
            _row(kind.name, batch, seconds, floor_s(kind.nbytes, kind.operations, rates), kind.nbytes)
        )
    if all(w.scale is None for w in step.linears):
        linears = rows[0]
        seconds = device_seconds(_library(step, batch), step.kernels.device, repeats)
        rows.append(_row("linears by torch", batch, seconds, linears["floor_ms"] / 1e3, 1e9 * linears["gb"]))
    return rows


def _row(kind: str, batch: int, seconds: float, floor: float, nbytes: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "batch": batch,
        "ms": round(1e3 * seconds, 4),
        "gb": round(nbytes / 1e9, 4),
        "floor_ms": round(1e3 * floor, 4),
        "share": round(floor / seconds, 3) if floor else "",
    }


def _warm(step: Step, batch: int) -> None:
    """A whole step, before some of its kernels are left out: what is tuned must be measured as it is."""
    step.run_layers(batch, _segments(step, batch, 0), step.rows(batch))
    step.run_layers(batch, None, step.rows(batch))
    step.run_head(batch)
    wait(step.kernels.device)


def _seconds(step: Step, batch: int, kind: Kind, turns: int, repeats: int) -> float:
    """Of a graph that holds the kind's kernels alone, `turns` times with other adapters."""
    kernels, device = step.kernels, step.kernels.device
    rows = step.rows(batch)
    numbers = [draw.numbers(DrawRow())] * batch
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    groups = [_segments(step, batch, turn) if kind.lora else None for turn in range(turns)]

    def work(launch: Launch) -> None:
        with kernels.through(_only(kind.files, launch)):
            for lora in groups:
                if kind.layers:
                    step.run_layers(batch, lora, rows)
                if kind.head and kind.name != "tokens":
                    step.run_head(batch)
                if kind.head and kind.name != "head":
                    step.run_draw(batch, values)

    step.residual.normal_()
    work(kernels.launch)  # compiles, measures, finds its memory: no graph may
    wait(device)
    graph = capture(work, kernels.launch, device, None)
    return device_seconds(graph.replay, device, repeats) / turns


def _segments(step: Step, batch: int, turn: int) -> Any:
    """A different adapter for each row; others in each turn, as far as there are."""
    count = len(step.adapters)
    chosen = [step.adapters[(turn * batch + i) % count] for i in range(batch)]
    return step.kernels.lora_rows(range(batch + 1), chosen).sent(step.kernels.device)


def _only(files: Collection[str], launch: Launch) -> Launch:
    """Starts kernels that are written in one of these files, and no others."""

    def some(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        if kernel.fn.__module__.rpartition(".")[2] in files:
            launch(kernel, grid, *args, **options)

    return some


def _library(step: Step, batch: int) -> Callable[[], object]:
    """The layers' products as torch has them, from a graph where there is a GPU: what to compare with."""
    inputs = {w.k: torch.randn(batch, w.k, device=w.weight.device).to(w.weight.dtype) for w in step.linears}

    def work() -> None:
        for w in step.linears[:-1]:
            torch.nn.functional.linear(inputs[w.k], w.weight)

    work()
    if step.kernels.device.type != "cuda":
        return work
    wait(step.kernels.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
