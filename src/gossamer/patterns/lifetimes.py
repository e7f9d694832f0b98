"""For how long a causal pattern goes on reading a key: what a cache has to keep, and what it may forget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .base import Bools, Pattern

FOREVER = 2**40
"""Stands for a lifetime without end: no sequence is this long."""

NEVER = -1


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """How long each key of a run of positions is read."""

    last: NDArray[np.int64]
    """Distance of the last query that reads the key, at least; `NEVER` where none does, `FOREVER` where there is
    no last one."""
    steady: Bools
    """Whether every query from the key's own position to its last one reads it; True of a key that none reads."""


@lru_cache(maxsize=256)
def lifetimes(pattern: Pattern, first: int, last: int) -> Lifetimes:
    """The lifetimes of the keys `first … last - 1`, for queries at the key or after it.

    `pattern` is the same for every head. No lifetime is too short. It is exact wherever the pattern's `bounds` are
    exact for one key: in all that is made of causal windows, dilated windows and sets of keys.

    >>> from gossamer import Causal, Sinks, Window
    >>> lifetimes(Causal() & (Window(8) | Sinks(2)), 0, 4).last.tolist() == [FOREVER, FOREVER, 7, 7]
    True
    """
    keys = np.arange(first, last)
    longest = np.full(keys.shape, NEVER, np.int64)
    beyond = np.full(keys.shape, FOREVER, np.int64)  # no query this far away reads the key, unless all do
    forever = _may(pattern, keys, beyond - 1)
    while (unsure := beyond - longest > 1).any():
        middle = np.where(unsure, (longest + beyond) // 2, longest)
        read = unsure & _may(pattern, keys, np.maximum(middle, 0))
        longest, beyond = np.where(read, middle, longest), np.where(unsure & ~read, middle, beyond)
    ends = keys + np.where(forever, FOREVER, np.maximum(longest, 0))
    _, must = pattern.bounds(keys, ends, keys, keys)
    return Lifetimes(np.where(forever, FOREVER, longest), must | (longest == NEVER))


def _may(pattern: Pattern, keys: NDArray[np.int64], distance: NDArray[np.int64]) -> Bools:
    """Whether some query at this distance or farther away may read each key."""
    may, _ = pattern.bounds(keys + distance, keys + 2 * FOREVER, keys, keys)
    return np.broadcast_to(may, keys.shape)
