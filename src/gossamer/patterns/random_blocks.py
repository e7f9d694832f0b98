"""Random blocks (BigBird, arXiv 2007.14062, section 2), drawn so that any length agrees with any other."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer

MOST_ROWS = 2**24
"""Query blocks whose draws are made, at most: some GiB."""


@dataclass(frozen=True, repr=False)
class RandomBlocks(Pattern):
    """Each query block sees `count` distinct key blocks drawn uniformly from those before it (all, where there
    are no more than `count`).

    The draw depends on the seed and the block's number alone, never on the length: training, prefill and
    decoding see the same blocks. For links in both directions join it with the `.T` of another seed.

    >>> RandomBlocks(1, count=1, seed=0).dense_mask(4).sum(axis=1).tolist()
    [0, 1, 1, 1]

    Raises:
        ValueError: `block` or `count` is no positive integer, or `seed` is negative.
    """

    block: int
    count: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("count", 1), ("seed", 0)):
            object.__setattr__(self, name, require_integer("RandomBlocks", name, getattr(self, name), least))

    @property
    def grain(self) -> int:
        return self.block

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        row, column = np.asarray(q) // self.block, np.asarray(k) // self.block
        rows = max(int(row.max(initial=0)) + 1, 1)
        drawn = _draw(_power_of_two(rows), self.count, self.seed)[np.maximum(row, 0)]
        return (row >= 0) & (column >= 0) & (drawn == column[..., None]).any(axis=-1)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        top, bottom, left, right = np.broadcast_arrays(*(p // self.block for p in (q_first, q_last, k_first, k_last)))
        if bottom.max(initial=0) >= MOST_ROWS:  # what is drawn so far away is not looked up: any key may be
            return (bottom >= 0) & (right >= 0), np.zeros(top.shape, bool)
        may = np.zeros(top.shape, bool)
        rows = _power_of_two(max(int(bottom.max(initial=0)) + 1, 1))
        levels = _bit_length(np.bitwise_xor(np.maximum(top, 0), np.maximum(bottom, 0)))
        for level in np.unique(levels):  # the smallest aligned run of rows that holds the whole rectangle
            at = levels == level
            codes, width = _links(rows, self.count, self.seed, int(level))
            base = (np.maximum(top[at], 0) >> level) * width
            first = np.searchsorted(codes, base + np.clip(left[at], 0, width - 1), "left")
            last = np.searchsorted(codes, base + np.clip(right[at], 0, width - 1), "right")
            may[at] = (last > first) & (bottom[at] >= 0) & (right[at] >= 0) & (left[at] < width)
        return may, may & (top == bottom) & (left == right)


@lru_cache(maxsize=16)
def _draw(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """[rows, count] distinct key blocks before each row's own, ascending; -1 where there are no more."""
    row, count = np.arange(rows), min(count, rows)
    drawn = np.full((rows, count), np.iinfo(np.int64).max)
    for turn in range(count):
        left_over = row - turn
        pick = (_hash(row, turn, seed) % np.maximum(left_over, 1).astype(np.uint64)).astype(np.int64)
        for taken in drawn.T[:turn]:  # ascending: step over every block already taken
            pick += pick >= taken
        drawn[:, turn] = np.where(left_over > 0, pick, np.iinfo(np.int64).max)
        drawn[:, : turn + 1].sort(axis=1)
    drawn[drawn == np.iinfo(np.int64).max] = -1
    return drawn


@lru_cache(maxsize=64)
def _links(rows: int, count: int, seed: int, level: int) -> tuple[NDArray[np.int64], int]:
    """Sorted codes `(row >> level) · width + key block` of every link, and the width."""
    drawn = _draw(rows, count, seed)
    codes = (np.arange(rows)[:, None] >> level) * rows + drawn
    return np.unique(codes[drawn >= 0]), rows


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
