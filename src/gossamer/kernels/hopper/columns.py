"""Keys in an order of their own: their rows are gathered, and their gradients go back to where they belong.

Each way is one launch for keys and values together and bound by memory: every row is read or written once, in vectors
of 16 bytes. The tensors of all keys, [B, G, K, width], are addressable; those of some, [B, G, C, width], are dense.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Operands, launch

Pair = tuple[Tensor, Tensor]
"""What belongs to the keys, and what belongs to the values."""

VECTOR = tl.constexpr(8)
"""Elements of 16 bytes in half precision. Rows of addressable tensors start at multiples of it, and the compiler moves
whole vectors where it is told so."""

TILE = 1024
"""Elements that a program gathers or sums, a vector for each of its threads."""

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
    rows = _rows(width, value_width)
    arguments = *operands, *_strides(k), *_strides(v), heads, count
    return Launch(_gather, batch * heads * _tiles(count, rows), arguments, (width, value_width, rows), None)


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
    rows = _rows(width, value_width)
    blocks = 2 * _tiles(columns, rows) + (0 if outside is None else _tiles(count, rows * CLEARED.value))
    arguments = *operands, *_strides(dk), *_strides(dv), batch, heads, columns, copies, count, number
    return Launch(_put, batch * heads * blocks, arguments, (width, value_width, rows, adds), None)


def _rows(width: int, value_width: int) -> int:
    """Rows of a tile, whose width is padded to a power of two."""
    return TILE >> (max(width, value_width) - 1).bit_length()


def _tiles(count: int, rows: int) -> int:
    return -(-count // rows)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """How far apart batch rows, heads and rows lie, in vectors."""
    batch, head, row, _ = x.stride()
    return batch // VECTOR.value, head // VECTOR.value, row // VECTOR.value


@triton.jit(do_not_specialize=["k_batch", "k_head", "k_row", "v_batch", "v_head", "v_row", "heads", "count"])
def _gather(
    k, v, some_k, some_v, keys, k_batch, k_head, k_row, v_batch, v_head, v_row, heads, count,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One tile of rows of K and of V."""
    batch, head, place, exists = _tile_of(tl.program_id(0), heads, count, ROWS)
    key = tl.load(keys + place)
    row = (batch * heads + head) * count + place
    _copy(some_k, row, k, batch * k_batch + head * k_head + key * k_row, exists, WIDTH)
    _copy(some_v, row, v, batch * v_batch + head * v_head + key * v_row, exists, VALUE_WIDTH)


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
        batch, head, place, exists = _tile_of(number % tiles, heads, columns, ROWS)
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
        batch, head, each, inside = _tile_of(number - 2 * tiles, heads, count, ROWS * CLEARED)
        cleared = inside & tl.load(outside + each)
        each = each.to(tl.int64)
        _clear(dk, batch * dk_batch + head * dk_head + each * dk_row, cleared, WIDTH)
        _clear(dv, batch * dv_batch + head * dv_head + each * dv_row, cleared, VALUE_WIDTH)


@triton.jit
def _tile_of(number, heads, count, ROWS: tl.constexpr):
    """(batch, head, rows, which of them exist) of a tile; those that do not are the last row once more.

    Tiles of all heads at the same rows come one after the other, for they may lie so in memory.
    """
    blocks = tl.cdiv(count, ROWS)
    rows = number // heads % blocks * ROWS + tl.arange(0, ROWS)
    batch, head = (number // heads // blocks).to(tl.int64), (number % heads).to(tl.int64)
    return batch, head, tl.minimum(rows, count - 1), rows < count


@triton.jit
def _offsets(row, WIDTH: tl.constexpr):
    """[rows, padded width] of rows that start at vector `row`."""
    return row[:, None] * VECTOR + tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]


@triton.jit
def _load(x, at, WIDTH: tl.constexpr):
    """Rows, which all exist: where nothing is masked, the compiler asks for several before it waits for the first."""
    if at.shape[1] == WIDTH:
        return tl.load(x + at)
    else:
        return tl.load(x + at, mask=tl.arange(0, at.shape[1])[None, :] < WIDTH, other=0.0)


@triton.jit
def _store(x, at, values, exists, WIDTH: tl.constexpr):
    mask = exists[:, None]
    if at.shape[1] != WIDTH:
        mask = mask & (tl.arange(0, at.shape[1])[None, :] < WIDTH)
    tl.store(x + at, values, mask=mask)


@triton.jit
def _copy(dense, dense_row, x, row, exists, WIDTH: tl.constexpr):
    """Copies the rows of x that start at vector `row` to rows of a dense tensor."""
    values = _load(x, _offsets(row, WIDTH), WIDTH)
    _store(dense, _offsets(dense_row * (WIDTH // VECTOR), WIDTH), values, exists, WIDTH)


@triton.jit
def _clear(x, row, exists, WIDTH: tl.constexpr):
    at = _offsets(row, WIDTH)
    _store(x, at, tl.zeros(at.shape, x.dtype.element_ty), exists, WIDTH)


@triton.jit
def _put_tile(x, row, parts, dense_row, exists, summands, WIDTH: tl.constexpr, ADDS: tl.constexpr):
    """Writes to rows of x, or adds to them, sums of parts: (their number, rows from one to the next, copies, …)."""
    count, apart, copies, further = summands
    at, taken = _offsets(row, WIDTH), _offsets(dense_row * (WIDTH // VECTOR), WIDTH)
    total = tl.zeros(at.shape, tl.float32)
    for each in tl.range(0, count * copies, loop_unroll_factor=TOGETHER):  # else each load waits for the last
        part = each // copies
        total += _load(parts + (part * apart + (each - part * copies) * further) * WIDTH, taken, WIDTH)
    if ADDS:
        total += _load(x, at, WIDTH).to(tl.float32)
    _store(x, at, total.to(x.dtype.element_ty), exists, WIDTH)
