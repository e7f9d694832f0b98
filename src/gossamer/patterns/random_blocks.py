"""Random blocks (BigBird, arXiv 2007.14062, section 2), drawn so that any length agrees with any other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer

MOST_ROWS = 2**24
"""Query blocks whose draws are made, at most: some GiB."""

_NONE = np.iinfo(np.int64).max
"""Stands where a row has no further block; no block's number is as high."""


@dataclass(frozen=True, repr=False)
class RandomBlocks(Pattern):
    """Each query block sees `count` distinct key blocks drawn uniformly from those before it (all, where there
    are no more than `count`).

    The draw depends on the seed and the block's number alone, never on the length: training, prefill and
    decoding see the same blocks. For links in both directions join it with the `.T` of another seed.

    With `blocks`, the number of all blocks, it is the two-sided form: each query block but the first and the last
    draws from all of them, or from the first `among`, those left out that BigBird shows it anyway: its neighbours,
    itself, the first and the last. The second block does not draw the last but one, nor this one the second, as in
    the paper's release.

    >>> RandomBlocks(1, count=1, seed=0).dense_mask(4).sum(axis=1).tolist()
    [0, 1, 1, 1]
    >>> RandomBlocks(1, count=2, seed=0, blocks=9).dense_mask(9).sum(axis=1).tolist()
    [0, 2, 2, 2, 2, 2, 2, 2, 0]

    Raises:
        ValueError: `block`, `count`, `blocks` or `among` is no positive integer, `seed` is negative, or `among` is
            given without `blocks` or beyond them.
    """

    block: int
    count: int
    seed: int
    blocks: int | None = None
    among: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("count", 1), ("seed", 0), ("blocks", 1), ("among", 1)):
            value = getattr(self, name)
            if value is not None or name in ("block", "count", "seed"):
                object.__setattr__(self, name, require_integer("RandomBlocks", name, value, least))
        if self.blocks is not None and self.blocks > MOST_ROWS:
            raise ValueError(f"RandomBlocks: blocks is {self.blocks}; give at most {MOST_ROWS}")
        if self.among is not None and (self.blocks is None or self.among > self.blocks):
            raise ValueError(
                f"RandomBlocks: among is {self.among} and blocks is {self.blocks}; give `blocks`, the number of all "
                f"blocks, and `among` at most as many"
            )

    @property
    def grain(self) -> int:
        return self.block

    def _draw_of(self, last: int) -> _Draw:
        """The draw that holds every row up to `last` that draws at all."""
        if self.blocks is None:
            return _Draw(_power_of_two(max(last + 1, 1)), self.count, self.seed)
        return _Draw(self.blocks, self.count, self.seed, self.among or self.blocks)

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        row, column = np.asarray(q) // self.block, np.asarray(k) // self.block
        draw = self._draw_of(int(row.max(initial=0)))
        drawn = _drawn(draw)[np.clip(row, 0, draw.rows - 1)]
        return (row >= 0) & (row < draw.rows) & (column >= 0) & (drawn == column[..., None]).any(axis=-1)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        top, bottom, left, right = np.broadcast_arrays(*(p // self.block for p in (q_first, q_last, k_first, k_last)))
        if self.blocks is None and bottom.max(initial=0) >= MOST_ROWS:
            return (bottom >= 0) & (right >= 0), np.zeros(top.shape, bool)  # not looked up so far away: any key may be
        draw = self._draw_of(int(bottom.max(initial=0)))
        one = (top == bottom) & (left == right)
        some = (bottom >= 0) & (top < draw.rows) & (right >= 0) & (left < draw.rows)
        top, bottom = np.clip(top, 0, draw.rows - 1), np.clip(bottom, 0, draw.rows - 1)
        may = np.zeros(top.shape, bool)
        levels = _bit_length(np.bitwise_xor(top, bottom))
        for level in np.unique(levels):  # the smallest aligned run of rows that holds the whole rectangle
            at = levels == level
            codes = _links(draw, int(level))
            base = (top[at] >> level) * draw.rows
            first = np.searchsorted(codes, base + np.clip(left[at], 0, draw.rows - 1), "left")
            last = np.searchsorted(codes, base + np.clip(right[at], 0, draw.rows - 1), "right")
            may[at] = (last > first) & some[at]
        return may, may & one


class _Draw(NamedTuple):
    """What a table of draws is made from: `among` is None where a row draws from those before it."""

    rows: int
    count: int
    seed: int
    among: int | None = None


@lru_cache(maxsize=64)
def _drawn(draw: _Draw) -> NDArray[np.int64]:
    """[rows, count] the distinct key blocks of each row, ascending; -1 where there are no more."""
    row = np.arange(draw.rows)
    taken = np.empty((draw.rows, 0), np.int64) if draw.among is None else _shut(draw.rows, draw.among)
    pool = row if draw.among is None else np.where((row > 0) & (row < draw.rows - 1), draw.among, 0)
    left_over = pool - (taken != _NONE).sum(axis=1)
    drawn = []
    for turn in range(min(draw.count, draw.rows)):
        pick = (_hash(row, turn, draw.seed) % np.maximum(left_over, 1).astype(np.uint64)).astype(np.int64)
        for other in taken.T:  # ascending: step over every block already taken
            pick += pick >= other
        drawn.append(np.where(left_over > 0, pick, _NONE))
        taken = np.sort(np.column_stack([taken, drawn[-1]]), axis=1)
        left_over = left_over - 1
    table = np.sort(np.stack(drawn, axis=1), axis=1)
    return np.where(table == _NONE, -1, table)


def _shut(blocks: int, among: int) -> NDArray[np.int64]:
    """[blocks, 6] which of the first `among` blocks each row of the two-sided form never draws, ascending."""
    row, last = np.arange(blocks), blocks - 1
    opposite = np.where(row == 1, last - 1, np.where(row == last - 1, 1, 0))
    shut = np.sort(np.stack([0 * row, row - 1, row, row + 1, 0 * row + last, opposite], axis=1), axis=1)
    again = np.diff(shut, axis=1, prepend=-2) == 0
    return np.sort(np.where(again | (shut < 0) | (shut >= among), _NONE, shut), axis=1)


@lru_cache(maxsize=64)
def _links(draw: _Draw, level: int) -> NDArray[np.int64]:
    """Sorted codes `(row >> level) · rows + key block` of every link."""
    drawn = _drawn(draw)
    codes = (np.arange(draw.rows)[:, None] >> level) * draw.rows + drawn
    return np.unique(codes[drawn >= 0])


def _hash(row: NDArray, turn: int, seed: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of (seed, row, turn): the finaliser of SplitMix64 applied in a chain."""
    bits = np.full(row.shape, seed % 2**64, np.uint64)
    for part in (np.full_like(bits, turn + 1), row.astype(np.uint64)):
        bits = bits + np.uint64(0x9E3779B97F4A7C15) * (part + np.uint64(1))
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return bits


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _bit_length(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ceil(np.log2(numbers + 1.0)).astype(np.int64)
