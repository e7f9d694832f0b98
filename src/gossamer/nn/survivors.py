"""Which keys of a sequence a cache goes on holding, and where: found from lifetimes, once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..patterns.base import Pattern
from ..patterns.lifetimes import FOREVER, NEVER, lifetimes

BLOCK = 4096
"""Lifetimes are found for this many positions at a time, and kept."""

FAR = 2**20
"""Where lifetimes are asked for besides the start, to see what a pattern does in the long run."""

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Survivors:
    """What of an excerpt will still be read, and where in a cache it goes."""

    archived: Positions
    """Positions of those older than the ring."""
    index: Positions
    """Numbers in the excerpt of all that survive, the archived first."""
    slots: Positions
    """Where each of them goes."""
    plain: bool
    """Whether each later query sees all of them, as long as the ring drops one key for each that comes."""


@lru_cache(maxsize=8)  # few: each answer is as long as what survives
def survivors(pattern: Pattern, ring: int, kept: bytes, start: int, end: int) -> Survivors:
    """Those of the keys at positions `kept` (int64) and `start … end - 1` that a query from `end` on reads, and the
    newest `ring`; kept for the last questions, because all layers of a forward ask the same."""
    positions = np.concatenate([np.frombuffer(kept, np.int64), np.arange(start, end)])
    last, steady = lives(pattern, positions)
    newest = positions >= end - ring
    old, new = np.flatnonzero(~newest & (positions + last >= end)), np.flatnonzero(newest)
    plain = (last[old] == FOREVER).all() and (last[new] >= ring - 1).all() and steady[old].all() and steady[new].all()
    slots = np.concatenate([ring + np.arange(len(old)), positions[new] % max(ring, 1)])
    return Survivors(positions[old], np.concatenate([old, new]), slots, bool(plain))


@lru_cache(maxsize=256)
def ring_of(pattern: Pattern) -> int:
    """How many of the newest keys are all worth holding: as long as the shortest lifetime that ends."""
    last, _ = lives(pattern, np.concatenate([np.arange(BLOCK), FAR + np.arange(BLOCK)]))
    ending = last[(last != NEVER) & (last != FOREVER)]
    return int(ending.min()) + 1 if len(ending) else 0


def lives(pattern: Pattern, positions: Positions) -> tuple[Positions, NDArray[np.bool_]]:
    """(distance of the last reader, steadiness) of the key at each of these ascending positions."""
    last, steady = np.empty(len(positions), np.int64), np.empty(len(positions), bool)
    cuts = np.flatnonzero(np.diff(positions // BLOCK)) + 1
    for first, end in pairwise([0, *cuts.tolist(), len(positions)] if len(positions) else []):
        start = int(positions[first]) // BLOCK * BLOCK
        found, within = lifetimes(pattern, start, start + BLOCK), positions[first:end] - start
        last[first:end], steady[first:end] = found.last[within], found.steady[within]
    return last, steady
