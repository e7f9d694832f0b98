"""Results of long rows from those of their parts: one launch for each, which adds them in float32.

Parts are dense tensors [B, H, rows, width] in the precision of the results. Each `size` rows of it are a part, and a
long row's parts stand side by side. They are few; what a program waits for is its parts, one after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Operands, launch
from .long_rows import LongRows
from .vectors import VECTOR, loaded, offsets, rows_of, store, strides_of


def write_merged(parts: tuple[Tensor, Tensor], long: LongRows, out: Tensor, lse: Tensor, within: Tensor | None) -> None:
    """Writes to the long rows of `out` and `lse` the softmax over what their parts see and what `lse` has there before.

    Parts are (out, lse [B, H, rows]). Queries outside of their sequence, `within` int32 [B, 2], keep their `lse`, and
    their output is zero.
    """
    launch(_prepared_merge, (*parts, long.edges, long.places, out, lse, within), long.table.size)


def write_sums(parts: Tensor, long: LongRows, total: Tensor, within: Tensor | None) -> None:
    """Writes to the long rows of `total` [B, H, N, width] the sums over their parts; zero outside of a sequence."""
    launch(_prepared_sums, (parts, long.edges, long.places, total, within), long.table.size)


def _prepared_merge(operands: Operands, size: int) -> Launch:
    part, _, _, places, out, lse, _ = operands
    width = out.shape[3]
    numbers = *strides_of(out), *lse.stride()[:2], *_counts(out, part, places)
    return Launch(_merge, _programs(out, places, size), (*operands, *numbers), _constants(size, width), None)


def _prepared_sums(operands: Operands, size: int) -> Launch:
    part, _, places, total, _ = operands
    numbers = *strides_of(total), *_counts(total, part, places)
    return Launch(_sum, _programs(total, places, size), (*operands, *numbers), _constants(size, total.shape[3]), None)


def _counts(x: Tensor, part: Tensor, places: Tensor) -> tuple[int, ...]:
    """(heads, rows, rows of the parts, long rows)."""
    return x.shape[1], x.shape[2], part.shape[2], places.shape[0]


def _constants(size: int, width: int) -> tuple[int, int, int]:
    """(edge of a block, width, rows of a tile)."""
    return size, width, min(size, rows_of(width, width))


def _programs(x: Tensor, places: Tensor, size: int) -> int:
    rows = _constants(size, x.shape[3])[2]
    return x.shape[0] * x.shape[1] * places.shape[0] * (size // rows)


@triton.jit
def _tile_of(number, edges, places, within, heads, count, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """(batch, head, its first part and the one behind its last, rows in their block, positions, which are inside)."""
    TILES: tl.constexpr = SIZE // ROWS
    batch, head = number // heads // (TILES * count), number % heads
    tile = number // heads % (TILES * count)
    long = tile // TILES
    rows = tile % TILES * ROWS + tl.arange(0, ROWS)
    position = tl.load(places + long) * SIZE + rows
    inside = position >= 0
    if within is not None:
        inside = (position >= tl.load(within + 2 * batch)) & (position < tl.load(within + 2 * batch + 1))
    first, last = tl.load(edges + long), tl.load(edges + long + 1)
    return batch.to(tl.int64), head.to(tl.int64), first, last, rows, position, inside


@triton.jit(
    do_not_specialize=[
        *("out_batch", "out_head", "out_row", "lse_batch", "lse_head", "heads", "length", "part_rows", "count"),
    ]
)
def _merge(
    out_parts, lse_parts, edges, places, out, lse, within, out_batch, out_head, out_row, lse_batch, lse_head,
    heads, length, part_rows, count, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some rows of one long row."""
    number = tl.program_id(0)
    batch, head, first, last, rows, position, inside = _tile_of(number, edges, places, within, heads, count, SIZE, ROWS)
    exists = position < length
    own_lse = lse + batch * lse_batch + head * lse_head + position
    before = tl.load(own_lse, mask=exists, other=0.0)
    start = (batch * heads + head) * part_rows + rows
    highest = before
    for part in range(first, last):
        highest = tl.maximum(highest, _seen(lse_parts, start + part * SIZE, inside))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.exp(before - base)
    mean = tl.zeros((ROWS, triton.next_power_of_2(WIDTH)), tl.float32)
    for part in range(first, last):
        weight = tl.exp(_seen(lse_parts, start + part * SIZE, inside) - base)
        total += weight
        values = loaded(out_parts, offsets((start + part * SIZE) * (WIDTH // VECTOR), WIDTH), WIDTH).to(tl.float32)
        mean += tl.where(weight[:, None] > 0, weight[:, None] * values, 0.0)
    tl.debug_barrier()  # every warp may have read all of what one of them writes
    tl.store(own_lse, base + tl.log(total), mask=exists)
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    at = offsets(batch * out_batch + head * out_head + position.to(tl.int64) * out_row, WIDTH)
    store(out, at, mean.to(out.dtype.element_ty), exists, WIDTH)


@triton.jit
def _seen(lse, at, inside):
    """A part's log-sum-exp where its query is inside of its sequence."""
    return tl.where(inside, tl.load(lse + at), float("-inf"))


@triton.jit(do_not_specialize=["batch_step", "head_step", "row_step", "heads", "length", "part_rows", "count"])
def _sum(
    parts, edges, places, total, within, batch_step, head_step, row_step, heads, length, part_rows, count,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some rows of one long row."""
    number = tl.program_id(0)
    batch, head, first, last, rows, position, inside = _tile_of(number, edges, places, within, heads, count, SIZE, ROWS)
    start = (batch * heads + head) * part_rows + rows
    sums = tl.zeros((ROWS, triton.next_power_of_2(WIDTH)), tl.float32)
    for part in range(first, last):
        sums += loaded(parts, offsets((start + part * SIZE) * (WIDTH // VECTOR), WIDTH), WIDTH).to(tl.float32)
    sums = tl.where(inside[:, None], sums, 0.0)
    at = offsets(batch * batch_step + head * head_step + position.to(tl.int64) * row_step, WIDTH)
    store(total, at, sums.to(total.dtype.element_ty), position < length, WIDTH)
