"""Causal attention over paged keys and values: prompts and single tokens in one launch.

Keys are taken in splits of SPLIT positions. A split is summed up on its own, then the splits of a row are merged from
the first to the last, whoever does it: the programs of splits leave their parts in memory for a second kernel, or one
program walks through all splits of its rows. So the bits of a row depend on its position alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoa.engine.kernels.cuda.arithmetic import dot, inputs_ready, rounded
from stoa.engine.kernels.cuda.launch import Launch
from stoa.engine.kernels.cuda.step import SPLIT, DeviceRows
from stoa.engine.kernels.interface import KVLayout

TILE_M = 64  # query rows x heads: one kind of matrix instruction for prompts and single tokens
WAVES = 4  # programs that are wanted for each multiprocessor, before one walks through several splits
_LONG_WALK = 4  # splits. What has more is shared by up to _MOST_SHARE programs even if there are tiles enough
_MOST_SHARE = 8
_TILE_BYTES = 32 * 1024  # keys and values that one turn of the loop reads
_SHARED_BYTES = 92 * 1024  # the rest of 99 KB is for scores and weights


@dataclass(frozen=True)
class Workspace:
    """Where the parts of splits wait to be merged. What does not fit is walked through instead."""

    sums: Tensor  # fp32 [parts, head_dim]: weighted sums of values
    peaks: Tensor  # fp32 [parts, 2]: the largest score as a power of 2, the sum of weights
    multiprocessors: int


def workspace(parts: int, head_dim: int, multiprocessors: int, device: torch.device) -> Workspace:
    """`parts`: see `parts_of`; 4 (head_dim + 2) bytes each."""
    sums, peaks = (torch.zeros(parts, n, dtype=torch.float32, device=device) for n in (head_dim, 2))
    return Workspace(sums, peaks, multiprocessors)


def seen_splits(splits: int, window: int, split: int = SPLIT) -> int:
    """The most splits that a row sees, where the longest context has `splits`."""
    return min(splits, (window - 2) // split + 2) if window else splits


def parts_of(rows: int, q_heads: int, splits: int, window: int = 0, split: int = SPLIT) -> int:
    """Parts that a step of `rows` leaves, where the longest context has `splits`."""
    return rows * q_heads * seen_splits(splits, window, split)


def tile_rows(groups: int) -> int:
    """Query rows of one tile, where `groups` query heads read one KV head."""
    return max(1, TILE_M // groups)


def walkers(tiles: int, splits: int, multiprocessors: int) -> int:
    """Programs that share the splits of each of `tiles` (query tiles x KV heads).

    Many tiles fill the machine, but a step lasts as long as its longest context: that has more programs than one. In
    tiles with fewer splits they have nothing to do and return at once."""
    wanted = max(WAVES * multiprocessors // max(1, tiles), min(-(-splits // _LONG_WALK), _MOST_SHARE))
    return max(1, min(splits, wanted))


def tile_keys(tile_d: int, itemsize: int) -> int:
    """Keys of one tile, a divisor of SPLIT: fixed by the shape and dtype of heads, since bits depend on it."""
    return max(16, min(64, _TILE_BYTES // (2 * tile_d * itemsize)))


def stages(tile_d: int, itemsize: int) -> int:
    """One tile of keys is worked on while the others are loaded. Those fit into 99 KB of shared memory beside the
    queries: the one worked on is in registers. From Hopper on it is not, and two programs fit into 227 KB."""
    tile = 2 * tile_keys(tile_d, itemsize) * tile_d * itemsize
    return 1 + max(0, min(4, (_SHARED_BYTES - TILE_M * tile_d * itemsize) // tile))


def attention(
    launch: Launch, q: Tensor, out: Tensor, kv: Tensor, layout: KVLayout, layer: int, rows: DeviceRows,
    *, scale: float, window: int = 0, scratch: Workspace, split: int = SPLIT,
) -> None:  # fmt: skip
    """As `interface.LayerOps.attention`; `rows` are cut into tiles of `tile_rows`. scale > 0. `split`: for tests."""
    d, heads = layout.head_dim, layout.kv_heads
    q_heads = q.shape[1] // d
    groups = q_heads // heads
    seen = seen_splits(rows.num_splits, window, split)
    programs = walkers(rows.num_tiles * heads, seen, scratch.multiprocessors)
    if parts_of(rows.count, q_heads, rows.num_splits, window, split) > len(scratch.sums):
        programs = 1
    pages = kv.view(q.dtype)
    half = max(16, triton.next_power_of_2(d) // 2)
    launch(
        _attention, (rows.num_tiles, heads, programs),
        q, out, scratch.sums, scratch.peaks, pages, rows.positions, rows.tiles, rows.block_start, rows.blocks,
        layer, seen, scale * math.log2(math.e),
        warps=_warps(half, q.dtype), stages=stages(2 * half, q.dtype.itemsize),
        WALK=programs == 1, WINDOW=window, SPLIT=split, HEADS=heads, GROUPS=groups, D=d, BLOCK=layout.block_size,
        PAGE=layout.page_bytes // q.dtype.itemsize, HALF=half,
        TILE_N=tile_keys(2 * half, q.dtype.itemsize), TILE_M=max(TILE_M, triton.next_power_of_2(groups)),
    )  # fmt: skip
    if programs > 1:
        launch(
            _combine, (rows.count, q_heads), out, scratch.sums, scratch.peaks, rows.positions, seen,
            warps=1, stages=1, WINDOW=window, SPLIT=split, D=d, HALF=half,
        )  # fmt: skip


def _warps(half: int, dtype: torch.dtype) -> int:
    """fp32 products keep much more in registers: there are no matrix units for them."""
    if dtype == torch.float32:
        return 16
    return 4 if half <= 64 else 8


@triton.jit
def _columns(rows, i, D: tl.constexpr, FULL: tl.constexpr):
    """Columns `i` of what starts at `rows`; 0 behind the D-th. Without a mask if they are there in FULL."""
    if FULL:
        return tl.load(rows[:, None] + i[None, :])
    else:  # noqa: RET505 - Triton compiles what follows a return
        return tl.load(rows[:, None] + i[None, :], mask=(i < D)[None, :], other=0.0)


@triton.jit
def _held(at, end, since):
    """Keys to read for `at`: what nobody sees may be NaN, which a weight of 0 would not silence."""
    return tl.maximum(tl.minimum(at, end - 1), since)


@triton.jit
def _attend(
    query, position, keys, table, begin, end, since, factor,
    VALUES: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    HALF: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """One split: keys begin … end - 1 of one sequence. query: [M, 2 HALF]; position: [M], -1 where nobody asks.
    -> largest score [M] (a power of 2), sum of weights [M], weighted sums of values, twice [M, HALF]."""
    M: tl.constexpr = query.shape[0]
    FULL: tl.constexpr = D == 2 * HALF
    peak = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    left, right = tl.zeros([M, HALF], tl.float32), tl.zeros([M, HALF], tl.float32)
    half = tl.arange(0, HALF)
    next_page = tl.load(table + _held(begin + tl.arange(0, TILE_N), end, since) // BLOCK)
    for start in range(begin, end, TILE_N):
        at = start + tl.arange(0, TILE_N)
        page = next_page.to(tl.int64)
        # A turn ahead: keys whose address is itself on its way would be loaded without any overlap.
        next_page = tl.load(table + _held(at + TILE_N, end, since) // BLOCK)
        rows = keys + page * PAGE + _held(at, end, since) % BLOCK * D
        k = _columns(rows, tl.arange(0, 2 * HALF), D, FULL)
        scores = dot(query, tl.trans(k), tl.zeros([M, TILE_N], tl.float32))
        behind = position[:, None] - at[None, :]
        seen = behind >= 0
        if WINDOW:
            seen = seen & (behind < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(peak, tl.max(scores, 1) * factor)
        safe = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(tl.fma(scores, factor, -safe[:, None]))
        keep = tl.exp2(peak - safe)  # exactly 1 where a tile of keys has nothing for a row
        mass = tl.fma(mass, keep, tl.sum(weights, 1))
        weights = rounded(weights, query.dtype)
        left = dot(weights, _columns(rows + VALUES, half, D, FULL), left * keep[:, None])
        right = dot(weights, _columns(rows + VALUES, HALF + half, D, FULL), right * keep[:, None])
        peak = new
    return peak, mass, left, right


@triton.jit
def _merge(peak, mass, left, right, part_peak, part_mass, part_left, part_right):
    """What splits came to so far ([M], [M], twice [M, HALF]), and the next one. All roundings are spelled out: two
    kernels do this and must agree."""
    new = tl.maximum(peak, part_peak)
    safe = tl.where(new == float("-inf"), 0.0, new)
    keep, add = tl.exp2(peak - safe), tl.exp2(part_peak - safe)
    mass = tl.fma(part_mass, add, mass * keep)
    left = tl.fma(part_left, add[:, None], left * keep[:, None])
    right = tl.fma(part_right, add[:, None], right * keep[:, None])
    return new, mass, left, right


@triton.jit
def _store_means(at, i, live, mass, left, right, D: tl.constexpr, HALF: tl.constexpr):
    """Writes what was merged as weighted means, to the rows that start at `at`."""
    mass = tl.where(mass == 0, 1.0, mass)[:, None]  # where nobody asks
    dtype: tl.constexpr = at.dtype.element_ty
    at = at[:, None] + i[None, :]
    tl.store(at, rounded(left / mass, dtype), mask=live[:, None] & (i < D)[None, :])
    tl.store(at + HALF, rounded(right / mass, dtype), mask=live[:, None] & (HALF + i < D)[None, :])


@triton.jit(do_not_specialize=["layer", "seen"])
def _attention(
    q, out, sums, peaks, pages, positions, tiles, block_start, blocks, layer, seen, factor,
    WALK: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, HALF: tl.constexpr, TILE_N: tl.constexpr,
    TILE_M: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: tiles, KV heads, programs that share the splits of a tile. A tile's queries are rows x GROUPS."""
    inputs_ready(EARLY)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # later rows have more keys: they begin first
    kv_head, walker = tl.program_id(1), tl.program_id(2)
    seq = tl.load(tiles + tile * 4)
    first = tl.load(tiles + tile * 4 + 1)
    count = tl.load(tiles + tile * 4 + 2)
    if count == 0:
        return
    last = tl.load(positions + first + count - 1)
    since = tl.maximum(tl.load(positions + first) - WINDOW + 1, 0) if WINDOW else 0
    if since // SPLIT + walker > last // SPLIT:
        return

    m, i, half = tl.arange(0, TILE_M), tl.arange(0, 2 * HALF), tl.arange(0, HALF)
    row, live = first + m // GROUPS, m // GROUPS < count
    position = tl.load(positions + row, mask=live, other=-1)
    unit = row.to(tl.int64) * (HEADS * GROUPS) + kv_head * GROUPS + m % GROUPS  # row and query head
    inside = live[:, None] & (i < D)[None, :]
    query = tl.load(q + (unit * D)[:, None] + i[None, :], mask=inside, other=0.0)
    keys = pages + (layer * 2 * HEADS + kv_head) * (BLOCK * D)
    values: tl.constexpr = HEADS * BLOCK * D
    table = blocks + tl.load(block_start + seq)

    peak = tl.full([TILE_M], float("-inf"), tl.float32)
    mass = tl.zeros([TILE_M], tl.float32)
    left, right = tl.zeros([TILE_M, HALF], tl.float32), tl.zeros([TILE_M, HALF], tl.float32)
    for split in range(since // SPLIT + walker, last // SPLIT + 1, tl.num_programs(2)):
        begin = tl.maximum(split * SPLIT, since // TILE_N * TILE_N)
        end = tl.minimum((split + 1) * SPLIT, last + 1)
        part_peak, part_mass, part_left, part_right = _attend(
            query, position, keys, table, begin, end, since, factor, values, WINDOW, D, BLOCK, PAGE, HALF, TILE_N
        )  # fmt: skip
        if WALK:
            peak, mass, left, right = _merge(
                peak, mass, left, right, part_peak, part_mass, part_left, part_right
            )
        else:
            slot = unit * seen + split % seen  # a row sees at most `seen` splits, all adjacent
            mine = live & (split <= position // SPLIT)
            if WINDOW:
                mine = mine & (split >= tl.maximum(position - WINDOW + 1, 0) // SPLIT)
            tl.store(peaks + slot * 2, part_peak, mask=mine)
            tl.store(peaks + slot * 2 + 1, part_mass, mask=mine)
            at = (sums + slot * D)[:, None] + half[None, :]
            tl.store(at, part_left, mask=mine[:, None] & (half < D)[None, :])
            tl.store(at + HALF, part_right, mask=mine[:, None] & (HALF + half < D)[None, :])
    if WALK:
        _store_means(out + unit * D, half, live, mass, left, right, D, HALF)


@triton.jit(do_not_specialize=["seen"])
def _combine(
    out, sums, peaks, positions, seen,
    WINDOW: tl.constexpr, SPLIT: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: rows, query heads. Merges the splits that a row sees, in order."""
    inputs_ready(EARLY)
    row = tl.program_id(0)
    position = tl.load(positions + row)
    unit = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1) + tl.zeros([1], tl.int64)
    half = tl.arange(0, HALF)
    since = tl.maximum(position - WINDOW + 1, 0) if WINDOW else 0
    peak = tl.full([1], float("-inf"), tl.float32)
    mass = tl.zeros([1], tl.float32)
    left, right = tl.zeros([1, HALF], tl.float32), tl.zeros([1, HALF], tl.float32)
    for split in tl.range(since // SPLIT, position // SPLIT + 1, loop_unroll_factor=4):
        slot = unit * seen + split % seen
        part_left = _columns(sums + slot * D, half, D, D == 2 * HALF)
        part_right = _columns(sums + slot * D, HALF + half, D, D == 2 * HALF)
        part_peak, part_mass = tl.load(peaks + slot * 2), tl.load(peaks + slot * 2 + 1)
        peak, mass, left, right = _merge(peak, mass, left, right, part_peak, part_mass, part_left, part_right)
    _store_means(out + unit * D, half, unit >= 0, mass, left, right, D, HALF)
