"""Finds the blocks that a pattern touches, by halving squares whose answer is not yet known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import Pattern
from .clauses import Extent


@dataclass(frozen=True, eq=False)
class Cover:
    """The blocks of `size` × `size` pairs that hold a visible pair, row by row.

    `tile` is each block's index into the distinct masks `tiles` [tiles, size, size], or -1 where every pair
    of the block (within the extent) is visible.
    """

    size: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    tile: NDArray[np.int64]
    tiles: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Squares:
    """Squares of one `size` by their row and column in the grid of that size."""

    size: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def descend(pattern: Pattern, extent: Extent, size: int) -> Iterator[tuple[bool, Squares]]:
    """Yields (True, fully visible squares of any size) and (False, undecided squares of `size`): a quadtree."""
    longest = max(len(extent.queries), len(extent.keys))
    level = max((longest - 1) // size, 0).bit_length()
    rows = columns = np.zeros(min(1, len(extent.queries), len(extent.keys)), np.int64)
    while level >= 0:
        edge = size << level
        may, must = pattern.bounds(*corners(extent, edge, rows, columns))
        yield True, Squares(edge, rows[must], columns[must])
        undecided = may & ~must
        rows, columns = rows[undecided], columns[undecided]
        if level > 0:
            rows, columns = _quarters(extent, edge // 2, rows, columns)
        level -= 1
    yield False, Squares(size, rows, columns)


def cover(pattern: Pattern, extent: Extent, size: int) -> Cover:
    """Every block of `size` that holds a visible pair, without looking at all n² / size² of them."""
    rows, columns, tile, tiles = [], [], [], _TileTable(size)
    for full, squares in descend(pattern, extent, size):
        if full:
            squares = _split(extent, squares, size)
            index = np.full(len(squares.rows), -1)
        else:
            index = tiles.look(pattern, extent, squares)
        kept = index != _EMPTY
        rows.append(squares.rows[kept])
        columns.append(squares.columns[kept])
        tile.append(index[kept])
    row, column, index = (np.concatenate(parts) for parts in (rows, columns, tile))
    order = np.lexsort((column, row))
    return Cover(size, row[order], column[order], index[order], tiles.masks())


def corners(extent: Extent, edge: int, rows: NDArray, columns: NDArray) -> tuple[NDArray, ...]:
    """First and last query and key position of each square of `edge`, cut to the extent."""
    q, k = rows * edge, columns * edge
    return (
        extent.queries.start + q,
        extent.queries.start + np.minimum(q + edge, len(extent.queries)) - 1,
        extent.keys.start + k,
        extent.keys.start + np.minimum(k + edge, len(extent.keys)) - 1,
    )


def visible(pattern: Pattern, extent: Extent, squares: Squares) -> Iterator[NDArray[np.bool_]]:
    """The pairs of undecided squares as masks [squares, size, size], some at a time; False outside the extent."""
    within = np.arange(squares.size)
    some = max(1, 2**22 // squares.size**2)
    for first in range(0, len(squares.rows), some):
        q = (squares.rows[first : first + some, None] * squares.size + within)[:, :, None]
        k = (squares.columns[first : first + some, None] * squares.size + within)[:, None, :]
        inside = (q < len(extent.queries)) & (k < len(extent.keys))
        yield inside & pattern.allows(q + extent.queries.start, k + extent.keys.start)


_EMPTY = -2


class _TileTable:
    """The distinct masks met so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.known: dict[bytes, int] = {}

    def look(self, pattern: Pattern, extent: Extent, squares: Squares) -> NDArray[np.int64]:
        """Index of each square's mask: -1 where every pair within the extent is visible, `_EMPTY` where none is."""
        found = [self._index(mask) for masks in visible(pattern, extent, squares) for mask in masks]
        index = np.array(found, np.int64).reshape(-1)
        q_first, q_last, k_first, k_last = corners(extent, squares.size, squares.rows, squares.columns)
        area = (q_last - q_first + 1) * (k_last - k_first + 1)
        counts = np.append(self.masks().sum(axis=(1, 2)), 0)
        full = (index >= 0) & (counts[np.maximum(index, -1)] == area)
        return np.where(full, -1, index)

    def _index(self, mask: NDArray[np.bool_]) -> int:
        if not mask.any():
            return _EMPTY
        return self.known.setdefault(np.packbits(mask).tobytes(), len(self.known))

    def masks(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(b"".join(self.known), np.uint8).reshape(len(self.known), -(-(self.size**2) // 8))
        return np.unpackbits(bits, axis=1, count=self.size**2).astype(bool).reshape(-1, self.size, self.size)


def _quarters(extent: Extent, edge: int, rows: NDArray, columns: NDArray) -> tuple[NDArray, NDArray]:
    """The four squares of half the size in each square, but those beyond the extent."""
    rows = (2 * rows[:, None] + np.array([0, 0, 1, 1])).ravel()
    columns = (2 * columns[:, None] + np.array([0, 1, 0, 1])).ravel()
    inside = (rows * edge < len(extent.queries)) & (columns * edge < len(extent.keys))
    return rows[inside], columns[inside]


def _split(extent: Extent, squares: Squares, size: int) -> Squares:
    """The blocks of `size` within larger squares."""
    while squares.size > size:
        half = squares.size // 2
        squares = Squares(half, *_quarters(extent, half, squares.rows, squares.columns))
    return squares
