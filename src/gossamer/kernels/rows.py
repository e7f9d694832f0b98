"""Rows of tensors [B, H, N, D] as portable kernels are told of them, read them and write them."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

VECTOR = 8
"""Elements, 16 bytes of them in half precision: the most that one load takes."""


class Matrix(NamedTuple):
    """[B, H, N, D] and how far apart its neighbours lie: rows and all above in vectors of `unit` elements.

    The compiler then knows that a row starts where a vector does, and loads vectors.
    """

    pointer: Tensor
    batch: int
    head: int
    row: int
    column: int
    unit: tl.constexpr

    @staticmethod
    def of(x: Tensor) -> Matrix:
        batch, head, row, column = x.stride()
        unit = 1 if (batch | head | row) % VECTOR else VECTOR
        return Matrix(x, batch // unit, head // unit, row // unit, column, tl.constexpr(unit))


class Vector(NamedTuple):
    """[B, H, N] and how far apart its neighbours lie."""

    pointer: Tensor
    batch: int
    head: int
    row: int

    @staticmethod
    def of(x: Tensor) -> Vector:
        return Vector(x, *x.stride())


@triton.constexpr_function
def padded(width):
    """The power of two that a tile of this width takes; what lies beyond the width is zero."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def start_of(x, batch, head):
    """Where a head of a batch row starts; 64 bits, because tensors are larger than 32 can tell."""
    return batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head


@triton.jit
def cells(x, batch, head, index, exists, WIDTH: tl.constexpr):
    """(pointers, mask) of rows at `index` of a head, [rows, padded width]."""
    column = tl.arange(0, padded(WIDTH))
    rows = x.pointer + (start_of(x, batch, head) + index.to(tl.int64) * x.row) * x.unit
    mask = exists[:, None]
    if padded(WIDTH) != WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return rows[:, None] + (column * x.column)[None, :], mask


@triton.jit
def load_tile(x, batch, head, index, exists, WIDTH: tl.constexpr):
    """Rows at `index` of a head; zero where they do not exist and beyond the width."""
    pointers, mask = cells(x, batch, head, index, exists, WIDTH)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_tile(x, batch, head, index, exists, tile, WIDTH: tl.constexpr):
    """Writes what `load_tile` reads."""
    pointers, mask = cells(x, batch, head, index, exists, WIDTH)
    tl.store(pointers, tile.to(x.pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(x, batch, head, index, exists):
    """One number for each row at `index`; zero where the row does not exist."""
    return tl.load(x.pointer + start_of(x, batch, head) + index.to(tl.int64) * x.row, mask=exists, other=0.0)


@triton.jit
def delta_at(grad_tile, out, grad_lse, batch, head, index, exists, WIDTH: tl.constexpr):
    """What gradients of a row's scores are measured from: its output times its gradient, less the log-sum-exp's."""
    out_tile = load_tile(out, batch, head, index, exists, WIDTH)
    delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    if grad_lse is not None:
        delta -= load_vector(grad_lse, batch, head, index, exists)
    return delta


@triton.jit
def store_vector(x, batch, head, index, exists, vector):
    """Writes what `load_vector` reads."""
    tl.store(x.pointer + start_of(x, batch, head) + index.to(tl.int64) * x.row, vector, mask=exists)
