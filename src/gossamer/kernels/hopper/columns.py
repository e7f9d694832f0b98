"""Keys in an order of their own: their rows are gathered, and their gradients go back to where they belong.

Each way is one launch for keys and values together and bound by memory: every row is read or written once, in vectors
of 16 bytes. The tensors of all keys, [B, G, K, width], are addressable; those of some, [B, G, C, width], are dense.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Operands, launch
from .vectors import VECTOR, clear, copy, loaded, offsets, rows_of, store, strides_of, tile_of, tiles_of

Pair = tuple[Tensor, Tensor]
"""What belongs to the keys, and what belongs to the values."""

TOGETHER = tl.constexpr(8)
"""Summands that are on their way at a time."""

CLEARED = tl.constexpr(8)
"""Tiles that a program clears: it waits for nothing but the list of what is outside."""


def gathered(k: Tensor, v: Tensor, keys: Tensor) -> Pair:
    """The rows of k and v at `keys`, int64 [C], in their order."""
    (batch, heads, _, width), value_width, count = k.shape, v.shape[3], keys.shape[0]
    some = k.new_empty(batch, heads, count, width), v.new_empty(batch, heads, count, value_width)
    launch(_prepared_gather, (k, v, *some, keys))
    return some


def _prepared_gather(operands: Operands) -> Launch:
    k, v, *_, keys = operands
    (batch, heads, _, width), value_width, count = k.shape, v.shape[3], keys.shape[0]
    rows = rows_of(width, value_width)
    arguments = *operands, *strides_of(k), *strides_of(v), heads, count
    return Launch(_gather, batch * heads * tiles_of(count, rows), arguments, (width, value_width, rows), None)


def write_sums(parts: Pair, dk: Tensor, dv: Tensor, keys: Tensor | None, outside: Tensor | None) -> None:
    """Writes to the rows of dk and dv at `keys` the sums over parts, and zero to those that are `outside`.

    Parts are float32 [parts, B, G, copies · C, width] and dense, every copy of the keys after the last; all are added
    one after the other. Keys are int64 [C] and distinct, or all as they stand; `outside` is bool [K], or None where all
    keys are among them.
    """
    launch(_prepared_put, (*parts, dk, dv, keys, outside), False)


def add_sums(parts: Pair, dk: Tensor, dv: Tensor, keys: Tensor | None) -> None:
    """Adds those sums to the rows of dk and dv at `keys`, in float32 and rounded once; no other row is touched."""
    launch(_prepared_put, (*parts, dk, dv, keys, None), True)


def _prepared_put(operands: Operands, adds: bool) -> Launch:
    part, _, dk, dv, keys, outside = operands
    number, batch, heads, listed, width = part.shape
    count, value_width = dk.shape[2], dv.shape[3]
    columns = count if keys is None else keys.shape[0]
    copies = listed // max(columns, 1)
    rows = rows_of(width, value_width)
    blocks = 2 * tiles_of(columns, rows) + (0 if outside is None else tiles_of(count, rows * CLEARED.value))
    arguments = *operands, *strides_of(dk), *strides_of(dv), batch, heads, columns, copies, count, number
    return Launch(_put, batch * heads * blocks, arguments, (width, value_width, rows, adds), None)


@triton.jit(do_not_specialize=["k_batch", "k_head", "k_row", "v_batch", "v_head", "v_row", "heads", "count"])
def _gather(
    k, v, some_k, some_v, keys, k_batch, k_head, k_row, v_batch, v_head, v_row, heads, count,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One tile of rows of K and of V."""
    batch, head, place, exists = tile_of(tl.program_id(0), heads, count, ROWS)
    key = tl.load(keys + place)
    row = (batch * heads + head) * count + place
    copy(some_k, row, k, batch * k_batch + head * k_head + key * k_row, exists, WIDTH)
    copy(some_v, row, v, batch * v_batch + head * v_head + key * v_row, exists, VALUE_WIDTH)


@triton.jit(
    do_not_specialize=[
        *("dk_batch", "dk_head", "dk_row", "dv_batch", "dv_head", "dv_row"),
        *("batches", "heads", "columns", "copies", "count", "parts"),
    ]
)
def _put(
    dk_parts, dv_parts, dk, dv, keys, outside, dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    batches, heads, columns, copies, count, parts,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """A tile of sums for dK, or one for dV, or some tiles of both to clear: no two programs write one row."""
    number = tl.program_id(0)
    tiles = batches * heads * tl.cdiv(columns, ROWS)
    if number < 2 * tiles:
        batch, head, place, exists = tile_of(number % tiles, heads, columns, ROWS)
        key = place.to(tl.int64)
        if keys is not None:
            key = tl.load(keys + place)
        row = (batch * heads + head) * columns * copies + place
        summands = parts, batches.to(tl.int64) * heads * columns * copies, copies, columns
        if number < tiles:
            target = batch * dk_batch + head * dk_head + key * dk_row
            _put_tile(dk, target, dk_parts, row, exists, summands, WIDTH, ADDS)
        else:
            target = batch * dv_batch + head * dv_head + key * dv_row
            _put_tile(dv, target, dv_parts, row, exists, summands, VALUE_WIDTH, ADDS)
    elif outside is not None:
        batch, head, each, inside = tile_of(number - 2 * tiles, heads, count, ROWS * CLEARED)
        cleared = inside & tl.load(outside + each)
        each = each.to(tl.int64)
        clear(dk, batch * dk_batch + head * dk_head + each * dk_row, cleared, WIDTH)
        clear(dv, batch * dv_batch + head * dv_head + each * dv_row, cleared, VALUE_WIDTH)


@triton.jit
def _put_tile(x, row, parts, dense_row, exists, summands, WIDTH: tl.constexpr, ADDS: tl.constexpr):
    """Writes to rows of x, or adds to them, sums of parts: (their number, rows from one to the next, copies, …)."""
    count, apart, copies, further = summands
    at, taken = offsets(row, WIDTH), offsets(dense_row * (WIDTH // VECTOR), WIDTH)
    total = tl.zeros(at.shape, tl.float32)
    for each in tl.range(0, count * copies, loop_unroll_factor=TOGETHER):  # else each load waits for the last
        part = each // copies
        total += loaded(parts + (part * apart + (each - part * copies) * further) * WIDTH, taken, WIDTH)
    if ADDS:
        total += loaded(x, at, WIDTH).to(tl.float32)
    store(x, at, total.to(x.dtype.element_ty), exists, WIDTH)
