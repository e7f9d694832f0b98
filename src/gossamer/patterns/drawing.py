"""Draws a pattern with characters, or as shares of visible pairs for any other picture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .base import Pattern

SHADES = " ░▒▓█"
SAMPLES = 32
"""Positions looked at along each side of a cell; a cell of fewer positions is exact."""


def occupancy(pattern: Pattern, length: int, cells: int) -> NDArray[np.float64]:
    """[cells, cells] share of visible pairs in each cell of an even grid, at a cost independent of the length.

    Exact where a cell is no longer than 32 positions a side, else estimated on 32 × 32 of its pairs.

    Raises:
        ValueError: `length` or `cells` is below 1.
    """
    if length < 1 or cells < 1:
        raise ValueError(f"length is {length} and cells is {cells}; give both at least 1")
    edges = np.linspace(0, length, min(cells, length) + 1).astype(int)
    positions = [_samples(first, last) for first, last in pairwise(edges)]
    shares = [[pattern.allows(q[:, None], k[None, :]).mean() for k in positions] for q in positions]
    return np.array(shares)


def drawing(pattern: Pattern, length: int, cells: int) -> str:
    """The pattern as lines of text, two characters a cell; one picture for each group of heads."""
    cuts = pattern.head_cuts
    if not cuts:
        return f"{pattern}\n{_picture(pattern, length, cells)}"
    pictures = [
        f"heads {first}-{last - 1}: {group}\n{_picture(group, length, cells)}"
        for first, last, group in pattern.groups(cuts[-1])
    ]
    return "\n\n".join(pictures)


def _samples(first: int, last: int) -> NDArray[np.int64]:
    """All positions of a short cell; of a long one, one from each of 32 equal parts, at no regular stride."""
    if last - first <= SAMPLES:
        return np.arange(first, last)
    parts = np.linspace(first, last, SAMPLES + 1)
    jitter = np.random.default_rng(first).random(SAMPLES)
    return (parts[:-1] + jitter * np.diff(parts)).astype(np.int64)


def _picture(pattern: Pattern, length: int, cells: int) -> str:
    shares = occupancy(pattern, length, cells)
    levels = np.ceil(shares * (len(SHADES) - 1)).astype(int)
    rule = "─" * (2 * len(levels))
    rows = ["".join(SHADES[level] * 2 for level in row) for row in levels]
    return "\n".join([f"┌{rule}┐", *(f"│{row}│" for row in rows), f"└{rule}┘"])
