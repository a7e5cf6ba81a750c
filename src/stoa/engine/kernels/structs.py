"""What crosses from Python to C: csrc/stoa_kernels.h, field by field, and who keeps the memory alive."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import numpy as np
from torch import Tensor

from stoa.engine.kernels.interface import AttentionRows

STRIP = 16  # output columns
MAX_PARTS = 3


class LinearStruct(ctypes.Structure):
    _fields_ = (
        ("k", c_int64),
        ("lanes", c_int64),
        ("n_strips", c_int64),
        ("bits", c_int64),
        ("strip_bytes", c_int64),
        ("data", c_void_p),
        ("strips", c_void_p),
        ("bias", c_void_p),
        ("out_stride", c_int64),
    )


class PartStruct(ctypes.Structure):
    _fields_ = (
        ("h_lane", c_int64),
        ("lanes", c_int64),
        ("strip", c_int64),
        ("n_strips", c_int64),
        ("b", c_void_p),
        ("scale", c_double),
    )


class LoraStruct(ctypes.Structure):
    _fields_ = (
        ("a", c_void_p),
        ("a_bytes", c_int64),
        ("columns", c_int64),
        ("n_parts", c_int64),
        ("part", PartStruct * MAX_PARTS),
    )


class SegmentsStruct(ctypes.Structure):
    _fields_ = (("n", c_int64), ("starts", c_void_p), ("adapters", c_void_p), ("n_linears", c_int64))


class LayoutStruct(ctypes.Structure):
    _fields_ = tuple(
        (name, c_int64) for name in ("layers", "kv_heads", "head_dim", "block_size", "page_bytes")
    )


class RowsStruct(ctypes.Structure):
    _fields_ = (
        ("n_seqs", c_int64),
        ("n_rows", c_int64),
        ("max_blocks", c_int64),
        ("query_start", c_void_p),
        ("context_len", c_void_p),
        ("block_table", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
    )


class CpuLinear:
    """A weight in strips. `address` is of the structure the kernels read."""

    def __init__(
        self, data: Tensor, bias: Tensor | None, k: int, lanes: int, bits: int, splits: tuple[int, ...]
    ) -> None:
        self.k = k
        self.lanes = lanes
        self.splits = splits
        self.nbytes = data.nbytes
        self.data = data
        self.bias = bias
        self.part_strips = [-(-n // STRIP) for n in splits]
        columns = np.cumsum([0, *splits])
        strips = [
            (first + STRIP * i, min(STRIP, n - STRIP * i))
            for first, n, count in zip(columns, splits, self.part_strips, strict=False)
            for i in range(count)
        ]
        table = np.asarray(strips, dtype=np.int32)
        self._table = table
        self._struct = LinearStruct(
            k, lanes, len(strips), bits, data.nbytes // len(strips), data.data_ptr(), table.ctypes.data,
            bias.data_ptr() if bias is not None else None, sum(splits),
        )  # fmt: skip
        self.address = ctypes.addressof(self._struct)


class CpuAdapter:
    """Where an adapter's strips lie in pool memory, for every linear of the model."""

    def __init__(self, table: Any, nbytes: int) -> None:
        self._table = table
        self.n_linears = len(table)
        self.address = ctypes.addressof(table)
        self.nbytes = nbytes


class Segments:
    def __init__(self, starts: Sequence[int], adapters: Sequence[CpuAdapter | None]) -> None:
        first = np.asarray(starts, dtype=np.int32)
        table = np.asarray([a.address if a is not None else 0 for a in adapters], dtype=np.int64)
        self._keep = (first, table)
        n_linears = next((a.n_linears for a in adapters if a is not None), 0)
        self._struct = SegmentsStruct(len(adapters), first.ctypes.data, table.ctypes.data, n_linears)
        self.address = ctypes.addressof(self._struct)


class Rows:
    """AttentionRows as the kernels read it; made once per step."""

    def __init__(self, rows: AttentionRows) -> None:
        self.rows = rows
        self._struct = RowsStruct(
            len(rows.context_len), len(rows.positions), rows.block_table.shape[1],
            rows.query_start.ctypes.data, rows.context_len.ctypes.data, rows.block_table.ctypes.data,
            rows.positions.ctypes.data, rows.slots.ctypes.data,
        )  # fmt: skip
        self.address = ctypes.addressof(self._struct)


class DrawingStruct(ctypes.Structure):
    """`DrawRow`."""

    _fields_ = (
        ("temperature", c_double),
        ("min_p", c_double),
        ("top_p", c_double),
        ("uniform", c_double),
        ("top_k", c_int64),
    )


class CallStruct(ctypes.Structure):
    _fields_ = (("op", c_int64), ("p", c_void_p * 7), ("n", c_int64 * 3), ("d", c_double))
