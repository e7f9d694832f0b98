"""Rows of tensors [B, H, N, width] in vectors of 16 bytes, for kernels that only move or add them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

VECTOR = tl.constexpr(8)
"""Elements of 16 bytes in half precision. Rows of addressable tensors start at multiples of it, and the compiler moves
whole vectors where it is told so."""

TILE = 1024
"""Elements that a program moves or sums, a vector for each of its threads."""


def rows_of(width: int, value_width: int) -> int:
    """Rows of a tile, whose width is padded to a power of two."""
    return TILE >> (max(width, value_width) - 1).bit_length()


def tiles_of(count: int, rows: int) -> int:
    """Tiles that hold so many rows."""
    return -(-count // rows)


def strides_of(x: Tensor) -> tuple[int, int, int]:
    """How far apart batch rows, heads and rows lie, in vectors."""
    batch, head, row, _ = x.stride()
    return batch // VECTOR.value, head // VECTOR.value, row // VECTOR.value


@triton.jit
def tile_of(number, heads, count, ROWS: tl.constexpr):
    """(batch, head, rows, which of them exist) of a tile; those that do not are the last row once more.

    Tiles of all heads at the same rows come one after the other, for they may lie so in memory.
    """
    blocks = tl.cdiv(count, ROWS)
    rows = number // heads % blocks * ROWS + tl.arange(0, ROWS)
    batch, head = (number // heads // blocks).to(tl.int64), (number % heads).to(tl.int64)
    return batch, head, tl.minimum(rows, count - 1), rows < count


@triton.jit
def offsets(row, WIDTH: tl.constexpr):
    """[rows, padded width] of rows that start at vector `row`."""
    return row[:, None] * VECTOR + tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]


@triton.jit
def loaded(x, at, WIDTH: tl.constexpr):
    """Rows, which all exist: where nothing is masked, the compiler asks for several before it waits for the first."""
    if at.shape[1] == WIDTH:
        return tl.load(x + at)
    else:
        return tl.load(x + at, mask=tl.arange(0, at.shape[1])[None, :] < WIDTH, other=0.0)


@triton.jit
def store(x, at, values, exists, WIDTH: tl.constexpr):
    """Writes the rows that exist."""
    mask = exists[:, None]
    if at.shape[1] != WIDTH:
        mask = mask & (tl.arange(0, at.shape[1])[None, :] < WIDTH)
    tl.store(x + at, values, mask=mask)


@triton.jit
def copy(dense, dense_row, x, row, exists, WIDTH: tl.constexpr):
    """Copies the rows of x that start at vector `row` to rows of a dense tensor."""
    values = loaded(x, offsets(row, WIDTH), WIDTH)
    store(dense, offsets(dense_row * (WIDTH // VECTOR), WIDTH), values, exists, WIDTH)


@triton.jit
def clear(x, row, exists, WIDTH: tl.constexpr):
    """Writes zeros to the rows of x that start at vector `row`."""
    at = offsets(row, WIDTH)
    store(x, at, tl.zeros(at.shape, x.dtype.element_ty), exists, WIDTH)
