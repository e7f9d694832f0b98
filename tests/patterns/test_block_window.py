"""Bounds of patterns of whole blocks, over every rectangle of a small square."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from gossamer.patterns import BlockWindow, GlobalBlocks, Pattern, RandomBlocks

SIDE = 15
EXACT = [
    BlockWindow(3),
    BlockWindow(2, reach=0),
    BlockWindow(2, reach=2, start=4),
    BlockWindow(3, reach=1, start=7),
    GlobalBlocks(2, [0, 3]),
    GlobalBlocks(4, [1, 2]).T,
]
SOUND = [RandomBlocks(2, 2, seed=1, blocks=7), RandomBlocks(2, 1, seed=0, blocks=5), RandomBlocks(2, 3, seed=2)]


def rectangles() -> tuple[np.ndarray, ...]:
    """First and last query, first and last key of each."""
    sides = np.array(list(combinations_with_replacement(range(SIDE), 2)))
    rows, columns = np.repeat(sides, len(sides), axis=0), np.tile(sides, (len(sides), 1))
    return *rows.T, *columns.T


def truth(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Whether some pair, and whether every pair, of each rectangle is allowed."""
    sums = np.pad(pattern.dense_mask(SIDE).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, bottom, left, right = rectangles()
    count = sums[bottom + 1, right + 1] - sums[top, right + 1] - sums[bottom + 1, left] + sums[top, left]
    return count > 0, count == (bottom - top + 1) * (right - left + 1)


@pytest.mark.parametrize("pattern", EXACT, ids=str)
def test_bounds_are_exact(pattern: Pattern) -> None:
    for found, right in zip(pattern.bounds(*rectangles()), truth(pattern), strict=True):
        assert np.array_equal(found, right)


@pytest.mark.parametrize("pattern", SOUND, ids=str)
def test_bounds_of_random_blocks_are_sound(pattern: Pattern) -> None:
    (may, must), (some, every) = pattern.bounds(*rectangles()), truth(pattern)
    assert not (some & ~may).any() and not (must & ~every).any()
    top, bottom, left, right = (side // 2 for side in rectangles())
    one = (top == bottom) & (left == right)
    assert np.array_equal(may[one], some[one]) and np.array_equal(must[one], every[one])
