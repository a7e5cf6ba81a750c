"""A step's layers as a program: started one by one, or played from a CUDA graph.

Steps of up to 1024 rows are played, be they of prompts, of decoding sequences or of both: their numbers are padded to the
next of `SIZES` rows, and what differs from step to step (tokens, pages, adapters of any rank) lies in memory that the
graph reads. So a graph serves every step of its size; only a longer class of contexts, or the first adapters, want another.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from stoa.engine.kernels.cuda.attention import tile_rows
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.segments import (
    TILE,
    DeviceSegments,
    Segments,
    device_segments,
    fill_segments,
    segments_room,
)
from stoa.engine.kernels.cuda.step import (
    SPLIT,
    DeviceRows,
    StepBuffer,
    device_rows,
    fill_rows,
    query_tiles,
    rows_room,
)
from stoa.engine.kernels.interface import AttentionRows, KVLayout, Linear

if TYPE_CHECKING:
    from stoa.engine.kernels.cuda.kernels import CudaKernels
    from stoa.engine.kernels.cuda.tuning import Tuning
    from stoa.engine.parallel.group import Group

# Rows of graphs. Larger steps keep a GPU busy for longer than it takes to start their kernels one by one.
SIZES = (
    1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024
)  # fmt: skip
MOST_SEQS = 256  # of a step that is played
_MOST_GRAPHS = 64  # the longest unused goes
_log = logging.getLogger(__name__)


class Captured(Protocol):
    """Launches that can be made again, as they were."""

    def replay(self) -> None: ...


def capture(run: Callable[[Launch], None], launch: Launch, device: torch.device, pool: Any) -> Captured:
    """What `run` launches (by `launch`), without doing it."""
    if device.type != "cuda":
        return _Noted(run, launch)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    collects = gc.isenabled()
    gc.disable()  # what a collection frees could talk to the driver
    try:
        # not torch.cuda.graph: it empties the caches, and after an error leaves its stream the current one
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run(launch)
            finally:
                graph.capture_end()
    finally:
        if collects:
            gc.enable()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph


class _Noted:
    """A graph's twin where there is none: launches with the very arguments they had."""

    def __init__(self, run: Callable[[Launch], None], launch: Launch) -> None:
        self._launch = launch
        self._launches: list[tuple[Any, ...]] = []
        run(lambda *args, **options: self._launches.append((args, options)))

    def replay(self) -> None:
        for args, options in self._launches:
            self._launch(*args, **options)


class Recorder:
    """Implements `interface.Recorder`: notes calls of `CudaKernels`, and which tensors they get."""

    def __init__(self, kernels: CudaKernels, tuning: Tuning) -> None:
        self._kernels = kernels
        self._tuning = tuning
        self._calls: list[Callable[[CudaKernels, int, Any, Any], None]] = []
        self._most_rows = self._rows_per_tile = self._block_size = 1

    def program(self) -> CudaProgram:
        sizes = (*(s for s in SIZES if s < self._most_rows), min(self._most_rows, SIZES[-1]))
        return CudaProgram(
            self._kernels, self._tuning, self._calls, sizes, self._rows_per_tile, self._block_size
        )

    def linear(
        self, x: Tensor, w: Linear, out: Tensor, *, lora: Any = None, index: int = 0, accumulate: bool = False
    ) -> None:
        self._most_rows = len(x)
        self._calls.append(
            lambda k, n, lora, rows: k.linear(
                x[:n], w, out[:n], lora=lora, index=index, accumulate=accumulate
            )
        )

    def add_reduced(self, partial: Tensor, residual: Tensor, group: Group) -> None:
        self._calls.append(lambda k, n, lora, rows: k.add_reduced(partial[:n], residual[:n], group))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        self._calls.append(lambda k, n, lora, rows: k.rms_norm(x[:n], weight, eps, out[:n]))

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        self._calls.append(lambda k, n, lora, rows: k.silu_mul(gate_up[:n], out[:n]))

    def rope_append(
        self, qkv: Tensor, q_out: Tensor, rope: Tensor, kv: Tensor, layout: KVLayout, layer: int,
        rows: AttentionRows, *, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        self._calls.append(
            lambda k, n, lora, rows: k.rope_append(
                qkv[:n], q_out[:n], rope, kv, layout, layer, rows, q_norm=q_norm, k_norm=k_norm, eps=eps
            )
        )

    def attention(
        self, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: AttentionRows,
        *, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        self._rows_per_tile = tile_rows(q.shape[1] // layout.head_dim // layout.kv_heads)
        self._block_size = layout.block_size
        self._calls.append(
            lambda k, n, lora, rows: k.attention(
                q[:n], out[:n], kv, layout, layer, rows, scale=scale, window=window
            )
        )


@dataclass(frozen=True)
class _Key:
    rows: int  # one of SIZES
    splits: int  # of the longest context, at least: a power of two
    adapted: bool


def most_tiles(rows: int, seqs: int, rows_per_tile: int) -> int:
    """That so many rows of so many sequences can be cut into, each into tiles of its own."""
    return min(rows, rows // rows_per_tile + seqs)


class _Graph:
    """One key's numbers and launches. `captured` is made when they have been started one by one once."""

    def __init__(self, key: _Key, rows_per_tile: int, blocks: int, device: torch.device) -> None:
        self.key = key
        self.seqs = min(key.rows, MOST_SEQS)
        tiles = most_tiles(key.rows, self.seqs, rows_per_tile)
        lora_tiles = most_tiles(key.rows, self.seqs, TILE)
        room = rows_room(key.rows, self.seqs, tiles, blocks)
        self.state = (-1, -1)  # of the scratch memory, when it was captured
        self.buffer = StepBuffer(segments_room(key.rows, lora_tiles) | room, device)
        self.rows: DeviceRows = device_rows(self.buffer, key.rows, tiles, key.splits * SPLIT)
        self.segments: DeviceSegments | None = (
            device_segments(self.buffer, lora_tiles) if key.adapted else None
        )
        self.captured: Captured | None = None


class CudaProgram:
    """Implements `interface.Program`."""

    def __init__(
        self, kernels: CudaKernels, tuning: Tuning, calls: list[Callable[[CudaKernels, int, Any, Any], None]],
        sizes: tuple[int, ...], rows_per_tile: int, block_size: int,
    ) -> None:  # fmt: skip
        self._kernels = kernels
        self._tuning = tuning
        self._calls = calls
        self._sizes = sizes  # of graphs, in rows; 0: none
        self._rows_per_tile = rows_per_tile
        self._block_size = block_size
        self._graphs: dict[_Key, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if kernels.device.type == "cuda" else None
        self.captures = 0

    def __call__(self, count: int, lora: Segments | None, rows: AttentionRows) -> None:
        if count <= self._sizes[-1] and len(rows.context_len) <= MOST_SEQS:
            self._play(count, lora, rows)
        else:
            self._start(count, lora, rows)

    def _start(self, count: int, lora: Any, rows: Any) -> None:
        for call in self._calls:
            call(self._kernels, count, lora, rows)

    def _play(self, count: int, lora: Segments | None, rows: AttentionRows) -> None:
        graph = self._graph(count, lora, rows)
        buffer = graph.buffer
        buffer.await_sent()
        fill_segments(buffer, (lora or Segments([0], [])).tiles())
        buffer.send(fill_rows(buffer, rows, query_tiles(rows, self._rows_per_tile), self._block_size))
        if graph.captured is not None and graph.state == self._state(graph):
            graph.captured.replay()
            return
        graph.captured = None
        # compiles, measures, finds its memory: no graph may do that
        self._start(graph.key.rows, graph.segments, graph.rows)
        self._capture(graph)

    def _capture(self, graph: _Graph) -> None:
        """Of the step that has just been made; where it fails, steps are started one by one from then on."""
        k = self._kernels
        graph.state = self._state(graph)
        try:
            graph.captured = capture(lambda launch: self._note(graph, launch), k.launch, k.device, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning("CUDA graphs cannot be had, steps will take longer: %s", error)
            self._sizes = (0,)
        self.captures += 1

    def _state(self, graph: _Graph) -> tuple[int, int]:
        scratch = self._kernels.scratch
        return scratch.moves, scratch.changes if graph.key.adapted else 0

    def _note(self, graph: _Graph, launch: Launch) -> None:
        self._tuning.frozen = True
        try:
            with self._kernels.through(launch):
                self._start(graph.key.rows, graph.segments, graph.rows)
        finally:
            self._tuning.frozen = False

    def _graph(self, count: int, lora: Segments | None, rows: AttentionRows) -> _Graph:
        size = next(s for s in self._sizes if s >= count)
        longest = int(rows.context_len.max())
        splits = 1 << (-(-longest // SPLIT) - 1).bit_length()
        key = _Key(size, splits, lora is not None)
        graph = self._graphs.pop(key, None)
        if graph is None:
            blocks = min(size, MOST_SEQS) * -(-splits * SPLIT // self._block_size)
            graph = _Graph(key, self._rows_per_tile, blocks, self._kernels.device)
        self._graphs[key] = graph  # the last used is the last
        if len(self._graphs) > _MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph
